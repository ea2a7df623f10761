"""A tiny model ready to train: its decoder with a random adapter on every matrix, and examples of uneven lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguflora.arch import ModelSpec, model_spec
from gguflora.data import Encoded
from gguflora.gguf import Adapter, GgufFile, Pair, open_gguf
from gguflora.kernels import REFERENCE, Kernels
from gguflora.model import Decoder, LoraPair, load_decoder, with_pairs
from tests.tiny import random_adapter, tiny_llama

RANK, SCALE = 5, 2.5  # the rank equals no other size of the model, and the scale is not 1
EVERYTHING: dict[str, Any] = {"biases": True, "tied": False, "rope_freqs": True, "rope_factor": 2.5}
"""A model that has all that a tiny model may have."""

LENGTHS, WEIGHTS = (3, 21, 2, 40, 9, 25, 13), (1.0, 0.5, 3.0, 1.0, 0.25, 2.0, 1.5)


@dataclass(frozen=True)
class Tiny:
    """A tiny model on disk and in memory; `decoder` has `pairs` on it, which are not zero."""

    gguf: GgufFile
    spec: ModelSpec
    base: Decoder
    decoder: Decoder
    pairs: dict[str, LoraPair]


def tiny(path: Path, dtype: torch.dtype, kernels: Kernels = REFERENCE, **numbers: Any) -> Tiny:
    """Write a tiny model into the folder `path` and load it."""
    gguf = open_gguf(tiny_llama(path / "tiny.gguf", **numbers))
    spec = model_spec(gguf)
    base = load_decoder(gguf, spec, dtype, kernels)
    pairs = random_pairs(full_adapter(gguf), torch.promote_types(dtype, torch.float32))
    return Tiny(gguf, spec, base, with_pairs(base, pairs, SCALE), pairs)


def full_adapter(gguf: GgufFile) -> Adapter:
    """A random adapter on every matrix that may have one: the output layer too, where it is no embedding."""
    adapter = random_adapter(gguf, RANK, scale=SCALE)
    if "output.weight" not in gguf.tensors:
        return adapter
    rng = np.random.default_rng(1)
    out, columns = gguf.tensors["output.weight"].shape
    lora_a = rng.normal(0, columns**-0.5, (RANK, columns)).astype(np.float32)
    lora_b = rng.normal(0, 0.05, (out, RANK)).astype(np.float32)
    return Adapter(adapter.architecture, adapter.alpha, {**adapter.pairs, "output.weight": Pair(lora_a, lora_b)})


def random_pairs(adapter: Adapter, dtype: torch.dtype) -> dict[str, LoraPair]:
    """The adapter's pairs as leaves that want gradients."""
    return {
        name: LoraPair(*(torch.tensor(half, dtype=dtype, requires_grad=True) for half in (pair.lora_a, pair.lora_b)))
        for name, pair in adapter.pairs.items()
    }


def examples(
    lengths: Sequence[int] = LENGTHS, weights: Sequence[float] = WEIGHTS, seed: int = 0, vocabulary: int = 300
) -> list[Encoded]:
    """Random examples of two tokens or more; about half of each one's tokens are trained, the last one always."""
    rng = np.random.default_rng(seed)
    encoded = []
    for length, weight in zip(lengths, weights, strict=True):
        tokens = rng.integers(0, vocabulary, length, np.int32)
        trained = rng.random(length) < 0.5
        trained[0], trained[-1] = False, True
        encoded.append(Encoded(tokens, np.where(trained, tokens, -100).astype(np.int32), weight, f"example {weight}"))
    return encoded
