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
SIZES = 32
"""Blocks are filled up with zeros to a multiple of so many positions. oneDNN compiles a product for each new shape, for
0.7 to 1 ms and 0.7 MB that it keeps: documents of any length would be a thousand shapes (docs/log.md)."""


@dataclass(frozen=True)
class Block:
    """Query rows [start, end) of a row's document, and the keys [first, end) that any of them sees.

    Attributes:
        filling: positions of zeros after `end`, which see and are seen by none of those before.
    """

    start: int
    end: int
    first: int
    filling: int

    @property
    def positions(self) -> int:
        """Query rows with the filling."""
        return self.end - self.start + self.filling


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
        softmax.forward(probabilities, block.positions, scale, window)
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
        softmax.forward(p, block.positions, scale, window)
        d_values = torch.bmm(p.transpose(1, 2), d_rows)
        ds = torch.bmm(d_rows, values.transpose(1, 2))
        softmax.backward(p, ds, scale)
        _unfold(torch.bmm(ds, keys), dq, block)
        seen = slice(block.first, block.end)
        keys_seen = block.end - block.first
        dk[seen] += torch.bmm(ds.transpose(1, 2), queries)[:, :keys_seen].transpose(0, 1)
        dv[seen] += d_values[:, :keys_seen].transpose(0, 1)
    return dq, dk, dv


def _blocks(document_starts: list[int], window: int | None) -> Iterator[Block]:
    for begin, stop in pairwise(document_starts):
        for start in range(begin, stop, BLOCK):
            past = start - begin if window is None else _rounded_up(window - 1)
            end = min(start + BLOCK, stop)
            yield Block(start, end, max(begin, start - past), _rounded_up(end - start) - (end - start))


def _rounded_up(positions: int) -> int:
    return -(-positions // SIZES) * SIZES


def _folded(x: Tensor, block: Block, kv_heads: int) -> Tensor:
    """Query-like rows of a block by key head: (T, H, h) to (K, n G, h), the G query heads of a position together."""
    rows = torch.unflatten(x[block.start : block.end], 1, (kv_heads, -1)).transpose(0, 1)  # (K, n, G, h)
    return _filled(rows, block.filling).flatten(1, 2)


def _unfold(folded: Tensor, out: Tensor, block: Block) -> None:
    """The way back: write (K, n G, h) into the block's rows of out (T, H, h)."""
    rows = torch.unflatten(out[block.start : block.end], 1, (folded.shape[0], -1))  # (n, K, G, h)
    by_head = folded.view(rows.shape[1], block.positions, *rows.shape[2:])
    rows.copy_(by_head[:, : len(rows)].transpose(0, 1))


def _heads(x: Tensor, block: Block) -> Tensor:
    """Keys or values of a block by head: (T, K, h) to (K, m, h)."""
    return _filled(x[block.first : block.end].transpose(0, 1), block.filling)


def _filled(rows: Tensor, filling: int) -> Tensor:
    """A copy of rows (K, n, ...) with zeros for `filling` positions after them."""
    result = rows.new_empty(rows.shape[0], rows.shape[1] + filling, *rows.shape[2:])
    result[:, : rows.shape[1]] = rows
    result[:, rows.shape[1] :] = 0
    return result
