"""flash.py's forward on one thread: for 32 queries of a head, blocks of keys one after the other.

    S = K Q^T      P = 2^(c (S - the largest so far))      O^T = O^T 2^(c (what was the largest - what is)) + V^T P

Source of the method: Dao et al. 2022, FlashAttention, algorithm 1; Milakov and Gimelshein 2018 (the running largest).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gguflora.kernels.attention.columns import QUERIES, exponentials, raise_largest, scale_rows, share_left
from gguflora.kernels.attention.flash_parts import Item
from gguflora.kernels.attention.flash_rows import (
    LANE_BYTES,
    by_keys,
    by_queries,
    gather,
    hide_unseen,
    keys_of,
    scatter,
    turn,
)
from gguflora.kernels.numeric import kernel, my_number, numbers, part, single, words_of
from gguflora.kernels.tiles import TILE_ROWS, pair_rows
from gguflora.kernels.vectors import next_number

KEYS = 128  # of a block: its scores stay in the first cache
ITEM = len(Item._fields)

K, V, V_PAIRS, Q, Q_COLUMNS, OUT, SCORES, P, LARGEST, BEFORE, TOTAL, SHARE = range(12)
AREAS = 12


def areas(keys: int, width: int) -> list[int]:
    """Bytes of a thread's scratch, in the order of the names above, for so many keys."""
    rows, queries, lanes = keys * width * 4, QUERIES * width * 4, QUERIES * 4
    return [rows, rows, rows, queries, queries, 2 * queries, KEYS * lanes, KEYS * lanes // 2, *[lanes] * 4]


@part
def _attend(at: Any, width: Any, position: Any, low: Any, high: Any, window: Any, scale: Any) -> None:
    """O^T (h, 32), largest scores and sums of exponentials of queries from `position` on over keys [low, high)."""
    row = width * 4
    largest, before, total = at[LARGEST], at[BEFORE], at[TOTAL]
    numbers(largest, QUERIES, np.float32)[:] = -np.inf
    numbers(total, QUERIES, np.float32)[:] = 0
    for start in range(low, high, KEYS):
        end = min(start + KEYS, high)
        pairs = (end - start) // 2
        for j in range(start, end, TILE_ROWS):
            by_queries(at[K] + j * row, width, at[Q_COLUMNS], at[SCORES] + (j - start) * LANE_BYTES)
        hide_unseen(at[SCORES], start, end, position, window)
        numbers(before, QUERIES, np.float32)[:] = numbers(largest, QUERIES, np.float32)
        raise_largest(largest, at[SCORES], pairs)
        if start > low:
            share_left(at[SHARE], before, largest, scale)
            scale_rows(total, 1, at[SHARE])
            scale_rows(at[OUT], 2 * width, at[SHARE])
        exponentials(at[SCORES], pairs, scale, largest, total, at[P])
        by_keys(at[V_PAIRS] + start * row, width, at[P], pairs, at[OUT], start > low)


@part
def _finish(at: Any, largest: Any, total: Any, count: Any) -> None:
    """Write the queries' largest scores and sums of exponentials, and one over each sum to the scratch."""
    sums, share = numbers(at[TOTAL], QUERIES, np.float32), numbers(at[SHARE], QUERIES, np.float32)
    numbers(largest, count, np.float32)[:] = numbers(at[LARGEST], count, np.float32)
    numbers(total, count, np.float32)[:] = sums[:count]
    for i in range(QUERIES):
        share[i] = np.float32(1) / sums[i]


@kernel
def forward_kernel(pointer: Any) -> None:
    """Items until there are none left; what the words are, flash.forward says."""
    words = words_of(pointer)
    width, group, window, scale = words[3], words[4], words[5], single(words[6])
    at = numbers(words[7] + my_number()[0] * AREAS * 8, AREAS, np.int64)
    largest, total, tokens = words[8], words[9], words[10]
    q, k, v, out = words[11], words[13], words[15], words[17]
    q_row, k_row, v_row, out_row = words[12], words[14], words[16], words[18]
    row = width * 4
    index = next_number(words[2])
    while index < words[0]:
        item = numbers(words[1] + index * ITEM * 8, ITEM, np.int64)
        begin, first, head = item[0], item[0] + item[1], item[4]
        count = item[3] - item[1]
        keys = -(-count // TILE_ROWS) * TILE_ROWS
        gather(k + first * k_row + head * row, k_row, count, at[K], width, keys)
        gather(v + first * v_row + head * row, v_row, count, at[V], width, keys)
        pair_rows(at[V], row, at[V_PAIRS], keys // 2)
        for query_head in range(head * group, (head + 1) * group):
            for i in range(item[2], item[3], QUERIES):
                here = min(QUERIES, item[3] - i)
                gather(q + (begin + i) * q_row + query_head * row, q_row, here, at[Q], width, QUERIES)
                turn(at[Q], width, at[Q_COLUMNS])
                low, high = keys_of(i - item[1], window, keys)
                _attend(at, width, i - item[1], low, high, window, scale)
                place = (query_head * tokens + begin + i) * 4
                _finish(at, largest + place, total + place, here)
                to = out + (begin + i) * out_row + query_head * row
                scatter(at[OUT], at[SHARE], width, at[Q_COLUMNS], at[Q], here, to, out_row)
        index = next_number(words[2])
