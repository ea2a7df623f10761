"""A tiny model ready to train: its decoder with a random adapter on every matrix, and examples of uneven lengths.

And the ways to train it, which tests are run with in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguflora.arch import ModelSpec, model_spec
from gguflora.arch.architectures import Architecture
from gguflora.data import Encoded
from gguflora.gguf import Adapter, GgufFile, open_gguf
from gguflora.kernels.operations import TORCH, compiled
from gguflora.model import (
    Decoder,
    LoraPair,
    PackedRow,
    Workspace,
    load_decoder,
    row_gradients,
    row_loss,
    row_nll,
    with_pairs,
)
from gguflora.train import Method, named_parameters
from tests.tiny import random_adapter, tiny_llama

RANK, SCALE = 5, 2.5  # the rank equals no other size of the model, and the scale is not 1
EVERYTHING: dict[str, Any] = {"biases": True, "tied": False, "rope_freqs": True, "rope_factor": 2.5}
"""A model that has all that a tiny model of the llama architecture may have."""

PATCHWORK = Architecture(
    "patchwork", qk_norm=True, post_norms=True, activation="gelu_tanh", scaled_embedding=True, window_pattern=2
)
"""A row that has all that any row has, so that one model goes through all code; the fixture of its name enters it."""

PATCHED: dict[str, Any] = EVERYTHING | {
    "architecture": PATCHWORK.name,
    "qk_norm": True,
    "post_norms": True,
    "window": 6,
    "softcap": 6.0,
}
"""The model of that row with all options."""

METHODS = ("reference", "explicit", "recompute")
ROOM = 64
"""Tokens that a workspace is made for; longer rows make it grow."""

LENGTHS, WEIGHTS = (3, 21, 2, 40, 9, 25, 13), (1.0, 0.5, 3.0, 1.0, 0.25, 2.0, 1.5)


@dataclass(frozen=True)
class Tiny:
    """A tiny model on disk and in memory; `decoder` has `pairs` on it, which are not zero."""

    gguf: GgufFile
    spec: ModelSpec
    base: Decoder
    decoder: Decoder
    pairs: dict[str, LoraPair]


def method_named(name: str) -> Method:
    """A way to compute gradients, with a workspace of its own."""
    if name == "reference":
        return Method(None)
    return Method(Workspace(ROOM, compiled() if name == "compiled" else TORCH), recompute=name == "recompute")


def tiny(path: Path, dtype: torch.dtype, packed: bool = False, **numbers: Any) -> Tiny:
    """Write a tiny model into the folder `path` and load it."""
    return load_tiny(open_gguf(tiny_llama(path / "tiny.gguf", **numbers)), dtype, packed)


def load_tiny(gguf: GgufFile, dtype: torch.dtype, packed: bool = False) -> Tiny:
    """Load an opened model, with a random adapter."""
    spec = model_spec(gguf)
    base = load_decoder(gguf, spec, dtype, packed)
    pairs = random_pairs(full_adapter(gguf), torch.promote_types(dtype, torch.float32))
    return Tiny(gguf, spec, base, with_pairs(base, pairs, SCALE), pairs)


def computed(decoder: Decoder, row: PackedRow, method: Method, factor: float = 1.0) -> tuple[float, Tensor]:
    """A row's loss and nll, having added the gradients of factor * loss to the pairs."""
    if method.work is not None:
        return row_gradients(decoder, row, factor, method.work, method.recompute)
    loss, nll = row_loss(decoder, row)
    (loss * factor).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), nll


def measured(decoder: Decoder, row: PackedRow, method: Method) -> Tensor:
    """A row's nll without gradients."""
    with torch.no_grad():
        return row_loss(decoder, row)[1] if method.work is None else row_nll(decoder, row, method.work)


def take_gradients(pairs: dict[str, LoraPair]) -> dict[str, Tensor]:
    """What a step left on the pairs, taken from them; each of them must have been reached."""
    found = {}
    for name, parameter in named_parameters(pairs):
        assert parameter.grad is not None, f"no gradient reached {name}"
        found[name], parameter.grad = parameter.grad, None
    return found


def full_adapter(gguf: GgufFile) -> Adapter:
    """A random adapter on every matrix that may have one: the output layer too, where it is no embedding."""
    return random_adapter(gguf, RANK, scale=SCALE)


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
