"""flash.py's backward on one thread: for 32 queries of a head, blocks of keys one after the other.

    S = K Q^T           P = 2^(c S - lse)        dV = dV + P dO
    dP = V dO^T         dS = P (dP - delta)      dK = dK + dS Q       dQ^T = dQ^T + K^T dS

delta is rowsum(dO O), which is rowsum(dP P). The scale of scores is left to dQ and dK as they are rounded. dK and dV
stay in the thread's scratch, or in an item's own part where a document is of several.
Source of the method: Dao et al. 2022, FlashAttention, algorithm 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gguflora.kernels.attention.columns import QUERIES, column_products, score_gradients
from gguflora.kernels.attention.flash_forward import ITEM, KEYS
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
from gguflora.kernels.numeric import kernel, my_number, numbers, part, put, single, words_of
from gguflora.kernels.tiles import TILE_COLUMNS, TILE_ROWS, clear, multiply, pair_rows
from gguflora.kernels.vectors import LANES, next_number

(
    K, V, K_PAIRS, DK, DV, ROWS, Q_COLUMNS, Q_PAIRS, D_COLUMNS, D_PAIRS, OUT_COLUMNS, DQ, SCORES, DP, P, DS, DS_WORDS,
    LSE, DELTA, SCALE,
) = range(20)  # fmt: skip
AREAS = 20


def areas(keys: int, width: int, summed: int) -> list[int]:
    """Bytes of a thread's scratch, in the order of the names above, for so many keys, `summed` of them in it."""
    rows, queries, lanes = keys * width * 4, QUERIES * width * 4, QUERIES * 4
    sums = 2 * summed * width * 4
    scores = [KEYS * lanes, KEYS * lanes, *[KEYS * lanes // 2] * 3]
    return [rows, rows, rows, sums, sums, *[queries] * 6, 2 * queries, *scores, *[lanes] * 3]


@part
def _attend(at: Any, dk: Any, dv: Any, width: Any, position: Any, low: Any, high: Any, window: Any, scale: Any) -> None:
    """dQ^T (h, 32) of queries from `position` on, and what they add to dk and dv (keys, h) over keys [low, high)."""
    row = width * 4
    for start in range(low, high, KEYS):
        end = min(start + KEYS, high)
        pairs = (end - start) // 2
        for j in range(start, end, TILE_ROWS):
            under = (j - start) * LANE_BYTES
            by_queries(at[K] + j * row, width, at[Q_COLUMNS], at[SCORES] + under)
            by_queries(at[V] + j * row, width, at[D_COLUMNS], at[DP] + under)
        hide_unseen(at[SCORES], start, end, position, window)
        score_gradients(at[SCORES], at[DP], pairs, scale, at[LSE], at[DELTA], at[P], at[DS], at[DS_WORDS])
        by_keys(at[K_PAIRS] + start * row, width, at[DS_WORDS], pairs, at[DQ], start > low)
        for j in range(start, end, TILE_ROWS):
            under = (j - start) * LANE_BYTES // 2
            _add_over_queries(at[P] + under, at[D_PAIRS], width, dv + j * 2 * row)
            _add_over_queries(at[DS] + under, at[Q_PAIRS], width, dk + j * 2 * row)


@part
def _add_over_queries(rows: Any, pairs: Any, width: Any, sums: Any) -> None:
    """Add to sums (8, h) of keys: rows (8, 32), of bfloat16, times those of queries (32, h) in pairs."""
    for d in range(0, 2 * width, TILE_COLUMNS):
        multiply(rows, QUERIES * 2, 4, pairs + d * 4, width * 8, QUERIES // 2, sums + d * 4, width * 8, True)


@part
def _queries(at: Any, source: Any, stride: Any, count: Any, width: Any, columns: Any, pairs: Any) -> None:
    """Rows of queries as columns, and as words of two rows."""
    gather(source, stride, count, at[ROWS], width, QUERIES)
    turn(at[ROWS], width, columns)
    pair_rows(at[ROWS], width * 4, pairs, QUERIES // 2)


@part
def _put_sums(sums: Any, scale: Any, rows: Any, h: Any, target: Any, stride: Any) -> None:
    """Sums (rows, h) times scale as bfloat16 to rows `stride` bytes apart."""
    for r in range(rows):
        x, to = numbers(sums + r * h * 4, h, np.float32), numbers(target + r * stride, h, np.uint16)
        for i in range(h):
            put(to, i, x[i] * scale)


@kernel
def backward_kernel(pointer: Any) -> None:
    """Items until there are none left; what the words are, flash.backward says."""
    words = words_of(pointer)
    width, group, window = words[3], words[4], words[5]
    scales = single(words[6]), single(words[7])
    at = numbers(words[8] + my_number()[0] * AREAS * 8, AREAS, np.int64)
    lse, tokens, parts = words[9], words[10], words[11]
    q, k, v, out, d_out = words[12], words[14], words[16], words[18], words[20]
    q_row, k_row, v_row, out_row, d_out_row = words[13], words[15], words[17], words[19], words[21]
    dq, dk, dv = words[22], words[24], words[26]
    dq_row, dk_row, dv_row = words[23], words[25], words[27]
    row = width * 4
    numbers(at[SCALE], QUERIES, np.float32)[:] = scales[1]
    index = next_number(words[2])
    while index < words[0]:
        item = numbers(words[1] + index * ITEM * 8, ITEM, np.int64)
        begin, first, head = item[0], item[0] + item[1], item[4]
        count = item[3] - item[1]
        keys = -(-count // TILE_ROWS) * TILE_ROWS
        gather(k + first * k_row + head * row, k_row, count, at[K], width, keys)
        gather(v + first * v_row + head * row, v_row, count, at[V], width, keys)
        pair_rows(at[K], row, at[K_PAIRS], keys // 2)
        alone = item[5] < 0
        sums_k = at[DK] if alone else parts + item[5]
        sums_v = at[DV] if alone else sums_k + keys * 2 * row
        clear(sums_k, keys * 2 * width // LANES)
        clear(sums_v, keys * 2 * width // LANES)
        for query_head in range(head * group, (head + 1) * group):
            for i in range(item[2], item[3], QUERIES):
                here, place, side = min(QUERIES, item[3] - i), begin + i, query_head * row
                gather(out + place * out_row + side, out_row, here, at[ROWS], width, QUERIES)
                turn(at[ROWS], width, at[OUT_COLUMNS])
                _queries(at, q + place * q_row + side, q_row, here, width, at[Q_COLUMNS], at[Q_PAIRS])
                _queries(
                    at, d_out + place * d_out_row + side, d_out_row, here, width,
                    at[D_COLUMNS], at[D_PAIRS],
                )  # fmt: skip
                column_products(at[D_COLUMNS], at[OUT_COLUMNS], width, at[DELTA])
                logarithms = numbers(at[LSE], QUERIES, np.float32)
                logarithms[:here] = numbers(lse + (query_head * tokens + place) * 4, here, np.float32)
                logarithms[here:] = 0
                low, high = keys_of(i - item[1], window, keys)
                _attend(at, sums_k, sums_v, width, i - item[1], low, high, window, scales[0])
                to = dq + place * dq_row + side
                scatter(at[DQ], at[SCALE], width, at[OUT_COLUMNS], at[ROWS], here, to, dq_row)
        if alone:
            _put_sums(sums_k, scales[1], count, 2 * width, dk + first * dk_row + head * row, dk_row)
            _put_sums(sums_v, np.float32(1), count, 2 * width, dv + first * dv_row + head * row, dv_row)
        index = next_number(words[2])
