"""Rows of heads into what tiles multiply, and back. A row of a head is h bfloat16, or `width` = h / 2 words."""

from __future__ import annotations

from typing import Any

from gguflora.kernels.attention.columns import QUERIES, hide, narrow
from gguflora.kernels.numeric import part
from gguflora.kernels.tiles import TILE_ROWS, clear, copy_rows, multiply, transpose
from gguflora.kernels.vectors import LANES

LANE_BYTES = QUERIES * 4  # of a row that has a number, or a word, for each query


@part
def gather(source: Any, stride: Any, rows: Any, target: Any, width: Any, filled: Any) -> None:
    """Copy rows that are `stride` bytes apart to rows under each other, and zeros after them up to `filled` rows."""
    copy_rows(source, stride, target, width * 4, rows, width // LANES)
    clear(target + rows * width * 4, (filled - rows) * width // LANES)


@part
def turn(rows: Any, width: Any, columns: Any) -> None:
    """Words (32, width) of queries to columns (width, 32)."""
    for r in range(0, QUERIES, LANES):
        for c in range(0, width, LANES):
            transpose(rows + (r * width + c) * 4, width * 4, columns + (c * QUERIES + r) * 4, LANE_BYTES)


@part
def scatter(sums: Any, share: Any, width: Any, columns: Any, rows: Any, count: Any, target: Any, stride: Any) -> None:
    """Write sums (h, 32) times share (32,) as bfloat16 to the first `count` rows at target.

    columns and rows are scratch for (width, 32) words each.
    """
    narrow(sums, width, share, columns)
    for r in range(0, QUERIES, LANES):
        for c in range(0, width, LANES):
            transpose(columns + (c * QUERIES + r) * 4, LANE_BYTES, rows + (r * width + c) * 4, width * 4)
    copy_rows(rows, width * 4, target, stride, count, width // LANES)


@part
def keys_of(position: Any, window: Any, keys: Any) -> Any:
    """The keys, whole tiles of them, that any of 32 queries from `position` on sees: from, to."""
    low = max(0, position - window + 1) // TILE_ROWS * TILE_ROWS
    high = -(-(position + QUERIES) // TILE_ROWS) * TILE_ROWS
    return low, min(high, keys)


@part
def by_queries(rows: Any, width: Any, columns: Any, target: Any) -> None:
    """Write target (8, 32): rows of 8 keys times columns (width, 32) of queries."""
    multiply(rows, width * 4, 4, columns, LANE_BYTES, width, target, LANE_BYTES, False)


@part
def by_keys(pairs: Any, width: Any, words: Any, n: Any, target: Any, add: Any) -> None:
    """Write target (h, 32), or add to it: keys (2 n, h), in pairs, as columns times words (n, 32) of two keys each."""
    for d in range(0, 2 * width, TILE_ROWS):
        multiply(pairs + d * 4, 4, width * 8, words, LANE_BYTES, n, target + d * LANE_BYTES, LANE_BYTES, add)


@part
def hide_unseen(scores: Any, start: Any, end: Any, position: Any, window: Any) -> None:
    """Minus infinity in scores (end - start, 32) of keys that queries from `position` on don't see: those ahead of one,
    and those that its window has left.
    """
    ahead = max(start, position + 1)
    if ahead < end:
        hide(scores + (ahead - start) * LANE_BYTES, end - ahead, position - ahead, window)
    left = min(ahead, position + QUERIES - window)
    if start < left:
        hide(scores, left - start, position - start, window)
