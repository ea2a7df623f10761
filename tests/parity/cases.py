"""A tiny model and an adapter on it, with what llama.cpp computes for them; and the same by our decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import gelu

from gguflora.arch import ModelSpec, model_spec
from gguflora.gguf import GgufFile, open_gguf, read_adapter, write_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, from_adapter, load_decoder, logits, with_pairs
from tests import tiny
from tests.numerics import Floats, finite
from tests.tiny import random_adapter, tiny_model

Tokens = npt.NDArray[np.int64]

SEED = 7
RANK, ADAPTER_SCALE = 5, 2.5  # the rank equals no other size of the models, and alpha / rank is not 1
USER_SCALES = (0.0, 0.5, 1.0, 2.0)
# Not more than 96 tokens: llama.cpp makes its angles by repeated float32 multiplication, so that its own distance from
# float64 grows with the position. Four windows of the windowed models.
TOKENS = np.concatenate([[tiny.IM_START], np.random.default_rng(SEED).integers(0, 300, 95)])


@dataclass(frozen=True)
class Case:
    """A model file, an adapter file on all its matrices, and llama.cpp's logits without it and at each scale."""

    gguf: GgufFile
    adapter: Path
    tokens: Tokens
    base: Floats
    scaled: dict[float, Floats]


def make_case(folder: Path, architecture: str, tokens: Tokens = TOKENS, **numbers: Any) -> Case:
    """Write a tiny model and an adapter into `folder`, and let llama.cpp read `tokens`."""
    gguf = open_gguf(tiny_model(folder / "tiny.gguf", architecture=architecture, **numbers))
    adapter = folder / "adapter.gguf"
    write_adapter(adapter, random_adapter(gguf, RANK, scale=ADAPTER_SCALE))
    # One thread: llama.cpp's threads wait for each other without sleeping, which a busy machine turns into minutes.
    with LlamaModel(gguf.path, exact=True, threads=1) as llama:
        base = finite(llama.logits(tokens))
        handle = llama.load_lora_adapter(adapter)
        scaled = {}
        for scale in USER_SCALES:
            llama.set_lora_adapter(handle, scale)
            scaled[scale] = finite(llama.logits(tokens))
    return Case(gguf, adapter, tokens, base, scaled)


def loaded(gguf: GgufFile, spec: ModelSpec | None = None, packed: bool = False) -> Decoder:
    """The file's decoder in float32, as `spec` says it is (its own spec, if none is given)."""
    return load_decoder(gguf, spec or model_spec(gguf), torch.float32, packed)


def adapted(decoder: Decoder, path: Path, scale: float) -> Decoder:
    """The decoder with the adapter file on it, at alpha / rank times the user's scale."""
    adapter = read_adapter(path)
    [rank] = {pair.rank for pair in adapter.pairs.values()}
    return with_pairs(decoder, from_adapter(adapter), scale * adapter.alpha / rank)


def ours(decoder: Decoder, tokens: Tokens = TOKENS) -> Floats:
    """Logits of `tokens` as one document."""
    with torch.no_grad():
        return finite(logits(decoder, torch.from_numpy(tokens), torch.arange(len(tokens)), [0, len(tokens)]))


def tabled_gelu(gate: torch.Tensor, up: torch.Tensor, _activation: str) -> torch.Tensor:
    """The gated activation as llama.cpp's processor code computes it, GELU read from a table of 16-bit numbers.

    Source: ggml_vec_gelu_f32, ggml/src/ggml-cpu/vec.h:1001. Our own is the formula, so this is for finding out how much
    of a difference is the table's. Not all of it goes: a gate beside the border of two 16-bit numbers takes the other
    entry for a difference of float32 rounding.
    """
    entry = gelu(gate.half().float(), approximate="tanh").half().float()
    return torch.where(gate <= -10, 0.0, torch.where(gate >= 10, gate, entry)) * up
