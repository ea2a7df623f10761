"""How flash.py cuts attention into what threads take, by lengths alone. Neither torch nor numba here."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import NamedTuple

SIZES_OF_HEADS = 32  # numbers; tiles are for multiples of it
KEYS_OF_TILE = 8
FORWARD_QUERIES = 512  # of an item
BACKWARD_QUERIES = 1024  # likewise, at least
PARTS = 8
"""Most parts of a document in the backward, where no window bounds what they see: each has sums of its own for all keys
before its end, so their memory is a few times that of the keys."""

ALONE = -1


class Item(NamedTuple):
    """A key head of a document, or of a part of it, and the query heads that read it; positions but `begin` are within
    the document. The kernels read the fields in this order.
    """

    begin: int  # of the document in the row
    first: int  # key that is seen
    start: int  # of the queries
    end: int  # of queries and keys
    head: int  # of the keys
    sums: int = ALONE  # where its own begin among the parts', in bytes; ALONE: they are the document's

    @property
    def keys(self) -> int:
        """Up to a whole tile."""
        return -(-(self.end - self.first) // KEYS_OF_TILE) * KEYS_OF_TILE


def forward_items(document_starts: list[int], window: int | None, kv_heads: int) -> list[Item]:
    """What threads take in the forward, the longest first."""
    found = [
        item
        for begin, stop in pairwise(document_starts)
        for item in _cut(begin, stop - begin, FORWARD_QUERIES, window, kv_heads)
    ]
    return sorted(found, key=_work, reverse=True)


def backward_items(document_starts: list[int], window: int | None, kv_heads: int, size: int) -> tuple[list[Item], int]:
    """What threads take in the backward, the longest first, and the bytes of all sums that parts have of their own.

    Args:
        document_starts: as in reference.attention.
        window: likewise.
        kv_heads: key heads.
        size: numbers of a head.
    """
    found, room = [], 0
    for begin, stop in pairwise(document_starts):
        step = part_queries(stop - begin, window)
        for item in _cut(begin, stop - begin, step, window, kv_heads):
            if stop - begin <= step:
                found.append(item)
            else:
                found.append(item._replace(sums=room))
                room += item.keys * size * 2 * 4  # keys' and values', in float32
    return sorted(found, key=_work, reverse=True), room


def part_queries(length: int, window: int | None) -> int:
    """Queries of an item in the backward, for a document's length."""
    if window is not None:
        return BACKWARD_QUERIES
    return max(BACKWARD_QUERIES, -(-length // PARTS))


def parts_of(items: list[Item]) -> list[list[Item]]:
    """The parts of each document and head that has several, from the first to the last."""
    parts = sorted((item for item in items if item.sums != ALONE), key=lambda item: (item.begin, item.head, item.start))
    return [list(same) for _, same in groupby(parts, key=lambda item: (item.begin, item.head))]


def _cut(begin: int, length: int, step: int, window: int | None, kv_heads: int) -> list[Item]:
    starts = range(0, length, step)
    firsts = (0 if window is None else max(0, start - window + 1) for start in starts)
    parts = [(first, start, min(start + step, length)) for first, start in zip(firsts, starts, strict=True)]
    return [Item(begin, *part, head) for part in parts for head in range(kv_heads)]


def _work(item: Item) -> int:
    """Twice the pairs of queries and keys, for an order."""
    return (item.end - item.start) * (item.start + item.end - 2 * item.first)
