"""The head's loss with its gradient in the same pass, in chunks of rows: more logits than a chunk's never exist.

With y = x W^T + s (x A^T) B^T, p = softmax(y) and dy = weights (p - onehot(label)) (times 1 - tanh^2 where logits are
capped), for each chunk:

    dx = dy W + dc A        dc = s dy B        dA += dc^T x        dB += dy^T (s x A^T)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.kernels.head_loss.reference import capped
from gguflora.kernels.lora_linear.explicit import StackedPairs
from gguflora.kernels.lora_linear.versions import LoraLinear
from gguflora.kernels.operations import Operations

SMALLEST, LOGITS = 256, 2**25
"""A chunk has as many rows as LOGITS logits hold, 64 MB in bfloat16, but SMALLEST at least. With fewer the products
take longer (docs/log.md), and at a vocabulary of 262k even those are 134 MB."""


@dataclass(frozen=True)
class HeadGradients:
    """dx (n, D), and dA (r, D), dB (V, r) where the head has a pair: those, sums over chunks, in float32 at least."""

    dx: Tensor
    da: Tensor | None
    db: Tensor | None


def nll(
    x: Tensor,
    labels: Tensor,
    weight: Tensor,
    pairs: StackedPairs | None,
    softcap: float | None,
    operations: Operations,
) -> Tensor:
    """The nll (n,) of labels (n,) for normalised states x (n, D) and output layer weight (V, D)."""
    parts = []
    for rows in _chunks(len(labels), len(weight)):
        logits, _ = _logits(x[rows], weight, pairs, softcap, operations.lora_linear)
        parts.append(operations.cross_entropy(logits, labels[rows], None))
        del logits  # as below
    return torch.cat(parts)


def forward_backward(
    x: Tensor,
    labels: Tensor,
    weights: Tensor,
    weight: Tensor,
    pairs: StackedPairs | None,
    softcap: float | None,
    operations: Operations,
    mask: Tensor | None = None,
) -> tuple[Tensor, HeadGradients]:
    """The nll (n,) of labels, and the gradients of sum(weights * nll), weights (n,); mask (n, D) is dropout's."""
    dx = torch.empty_like(x)
    da = db = None
    wide = torch.promote_types(x.dtype, torch.float32)
    parts = []
    for rows in _chunks(len(labels), len(weight)):
        part = None if mask is None else mask[rows]
        logits, c = _logits(x[rows], weight, pairs, softcap, operations.lora_linear, part)
        slope = None if softcap is None else 1 - (logits / softcap).square_()
        parts.append(operations.cross_entropy(logits, labels[rows], weights[rows]))
        # logits are their own gradient from here
        if slope is not None:
            logits *= slope
        dy = logits.to(x.dtype)
        delta = operations.lora_linear.backward(dy, c, weight, pairs, dx[rows], part)
        if delta is not None:
            da_part, db_part = operations.lora_linear.a_gradient(delta, x[rows]), delta.db[0]
            da_part, db_part = da_part.to(wide), db_part.to(wide)
            da = da_part if da is None else da.add_(da_part)
            db = db_part if db is None else db.add_(db_part)
        del dy
        del logits  # before the next chunk's are made: at a vocabulary of 262k they are all the memory there is
    return torch.cat(parts), HeadGradients(dx, da, db)


def chunk_rows(vocabulary: int) -> int:
    """Rows of a chunk: a power of two, so that a model's products have few shapes."""
    return max(SMALLEST, 1 << (LOGITS // vocabulary).bit_length() - 1)


def _chunks(n: int, vocabulary: int) -> list[slice]:
    # Without any row there is one chunk still, an empty one: its sums are zeros of the right shapes.
    rows = chunk_rows(vocabulary)
    return [slice(start, start + rows) for start in range(0, max(n, 1), rows)]


def _logits(
    x: Tensor,
    weight: Tensor,
    pairs: StackedPairs | None,
    softcap: float | None,
    linear: LoraLinear,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Logits (n, V), in float32 at least where they are capped, and c (n, r) of the pair."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    c = None if pairs is None else x.new_empty(x.shape[0], pairs.a.shape[0])
    linear.forward(x, weight, None, pairs, y, c, mask)
    return (y if softcap is None else capped(y.to(torch.promote_types(y.dtype, torch.float32)), softcap)), c
