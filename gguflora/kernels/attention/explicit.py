"""Attention as a pair of forward and backward by plain products, document by document, in blocks of query rows.

The query heads that share a key head are rows of one product. For a block, with P = softmax(s Q K^T):

    O  = P V                       dV = P^T dO
    dP = dO V^T                    dS = s P (dP - rowsum(dP P))
    dQ = dS K                      dK = dS^T Q

P is computed again in the backward: keeping it would cost more memory than all else together.
Rowwise softmax is in float32 (float64 in proofs); products are in the inputs' dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gguflora.kernels.attention.softmax import Softmax

BLOCK = 512  # query rows: bounds the scores to (H, BLOCK, t), and skips the keys that a causal block can't see


@dataclass(frozen=True)
class Block:
    """Query rows [start, end) of a row's document, and the keys [first, end) that any of them sees."""

    start: int
    end: int
    first: int


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_starts: list[int],
    scale: float,
    window: int | None,
    out: Tensor,
    softmax: Softmax,
) -> None:
    """Write out (T, H, h) for q (T, H, h), k and v (T, K, h); arguments as reference.attention.

    `softmax` is that of softmax.py or of compiled.py.
    """
    for block in _blocks(document_starts, window):
        queries, keys, values = _folded(q, block, k.shape[1]), _heads(k, block), _heads(v, block)
        probabilities = torch.bmm(queries, keys.transpose(1, 2))  # (K, n G, m)
        softmax.forward(probabilities, block.end - block.start, scale, window)
        _unfold(torch.bmm(probabilities, values), out, block)


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_starts: list[int],
    scale: float,
    window: int | None,
    softmax: Softmax,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, h), dk and dv (T, K, h) for d_out (T, H, h)."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    kv_heads = k.shape[1]
    for block in _blocks(document_starts, window):
        queries, keys, values = _folded(q, block, kv_heads), _heads(k, block), _heads(v, block)
        d_rows = _folded(d_out, block, kv_heads)  # (K, n G, h)
        p = torch.bmm(queries, keys.transpose(1, 2))  # (K, n G, m)
        softmax.forward(p, block.end - block.start, scale, window)
        d_values = torch.bmm(p.transpose(1, 2), d_rows)
        ds = torch.bmm(d_rows, values.transpose(1, 2))
        softmax.backward(p, ds, scale)
        _unfold(torch.bmm(ds, keys), dq, block)
        seen = slice(block.first, block.end)
        dk[seen] += torch.bmm(ds.transpose(1, 2), queries).transpose(0, 1)
        dv[seen] += d_values.transpose(0, 1)
    return dq, dk, dv


def _blocks(document_starts: list[int], window: int | None) -> Iterator[Block]:
    for begin, stop in pairwise(document_starts):
        for start in range(begin, stop, BLOCK):
            first = begin if window is None else max(begin, start - window + 1)
            yield Block(start, min(start + BLOCK, stop), first)


def _folded(x: Tensor, block: Block, kv_heads: int) -> Tensor:
    """Query-like rows of a block by key head: (T, H, h) to (K, n G, h), the G query heads of a position together."""
    rows = x[block.start : block.end]  # (n, H, h)
    return torch.unflatten(rows, 1, (kv_heads, -1)).transpose(0, 1).reshape(kv_heads, -1, rows.shape[-1])


def _unfold(folded: Tensor, out: Tensor, block: Block) -> None:
    """The way back: write (K, n G, h) into the block's rows of out (T, H, h)."""
    rows = torch.unflatten(out[block.start : block.end], 1, (folded.shape[0], -1))  # (n, K, G, h)
    rows.copy_(folded.view(rows.shape[1], rows.shape[0], *rows.shape[2:]).transpose(0, 1))


def _heads(x: Tensor, block: Block) -> Tensor:
    return x[block.first : block.end].transpose(0, 1).contiguous()  # (K, m, h)
