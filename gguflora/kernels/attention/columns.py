"""What attention does to scores between its products: scores (keys, 32), a column for each query, in float32.

The queries of a block are the lanes of two vectors, so sums and largest values over keys need no lane of another's.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gguflora.kernels.tiles import TILE_COLUMNS
from gguflora.kernels.vectors import (
    FLOATS,
    INT32,
    LANES,
    VECTOR_BYTES,
    WORDS,
    constant,
    counted,
    dot,
    emitted,
    exp2,
    fma,
    larger,
    load,
    narrowed,
    offset,
    shuffled,
    splat,
    store,
    types,
    variable,
    zipped,
)

QUERIES = TILE_COLUMNS
_BOTH, _FOUR = range(2), range(4)  # vectors of a row, and of two rows
_ROW = 2 * VECTOR_BYTES
_int64, _float32 = types.int64, types.float32


@emitted(*(_int64,) * 4)
def hide(builder: Any, scores: Any, keys: Any, ahead: Any, window: Any) -> None:
    """Minus infinity where query i does not see key j: it sees it if 0 <= ahead + i - j < window."""
    limit = splat(builder, builder.trunc(window, INT32))
    with counted(builder, keys) as j:
        row = offset(builder, scores, (j, _ROW))
        behind = splat(builder, builder.trunc(builder.sub(ahead, j), INT32))
        for k in _BOTH:
            lanes = ir.Constant(WORDS, list(range(LANES * k, LANES * (k + 1))))
            seen = builder.icmp_unsigned("<", builder.add(behind, lanes), limit)  # below 0 is large without a sign
            store(builder, builder.select(seen, load(builder, row, FLOATS, k), constant(float("-inf"))), row, k)


@emitted(*(_int64,) * 3)
def raise_largest(builder: Any, largest: Any, scores: Any, pairs: Any) -> None:
    """largest (32,) becomes the largest of it and of scores (2 pairs, 32)."""
    found = [variable(builder, load(builder, largest, FLOATS, k % 2)) for k in _FOUR]
    with counted(builder, pairs) as p:
        rows = offset(builder, scores, (p, 2 * _ROW))
        for k in _FOUR:
            builder.store(larger(builder, builder.load(found[k]), load(builder, rows, FLOATS, k)), found[k])
    for k in _BOTH:
        store(builder, larger(builder, builder.load(found[k]), builder.load(found[k + 2])), largest, k)


@emitted(_int64, _int64, _float32, _int64, _int64, _int64)
def exponentials(builder: Any, scores: Any, pairs: Any, scale: Any, largest: Any, total: Any, p: Any) -> None:
    """p (pairs, 32) words = 2^(scale (scores - largest)) of two keys each; total (32,) grows by their sum."""
    factor = splat(builder, scale)
    shift = [builder.fneg(builder.fmul(factor, load(builder, largest, FLOATS, k))) for k in _BOTH]
    sums = [variable(builder, load(builder, total, FLOATS, k) if k < 2 else constant(0.0)) for k in _FOUR]
    with counted(builder, pairs) as pair:
        rows = offset(builder, scores, (pair, 2 * _ROW))
        found = [exp2(builder, fma(builder, load(builder, rows, FLOATS, k), factor, shift[k % 2])) for k in _FOUR]
        for k in _FOUR:
            builder.store(builder.fadd(builder.load(sums[k]), found[k]), sums[k])
        _store_words(builder, found, offset(builder, p, (pair, _ROW)))
    for k in _BOTH:
        store(builder, builder.fadd(builder.load(sums[k]), builder.load(sums[k + 2])), total, k)


@emitted(*(_int64,) * 3, _float32, *(_int64,) * 5)
def score_gradients(
    builder: Any,
    scores: Any,
    dp: Any,
    pairs: Any,
    scale: Any,
    lse: Any,
    delta: Any,
    p: Any,
    ds: Any,
    ds_words: Any,
) -> None:
    """From scores and dp (2 pairs, 32): p = 2^(scale scores - lse), and ds = p (dp - delta).

    p and ds are written as rows of bfloat16 (2 pairs, 32), ds as words (pairs, 32) of two keys as well.
    """
    factor = splat(builder, scale)
    shift = [builder.fneg(load(builder, lse, FLOATS, k)) for k in _BOTH]
    less = [load(builder, delta, FLOATS, k) for k in _BOTH]
    with counted(builder, pairs) as pair:
        rows, d_rows = (offset(builder, address, (pair, 2 * _ROW)) for address in (scores, dp))
        share = [exp2(builder, fma(builder, load(builder, rows, FLOATS, k), factor, shift[k % 2])) for k in _FOUR]
        slope = [builder.fsub(load(builder, d_rows, FLOATS, k), less[k % 2]) for k in _FOUR]
        product = [builder.fmul(share[k], slope[k]) for k in _FOUR]
        for key in _BOTH:
            store(builder, narrowed(builder, *share[2 * key : 2 * key + 2]), offset(builder, p, (pair, _ROW)), key)
            store(builder, narrowed(builder, *product[2 * key : 2 * key + 2]), offset(builder, ds, (pair, _ROW)), key)
        _store_words(builder, product, offset(builder, ds_words, (pair, _ROW)))


@emitted(*(_int64,) * 4)
def narrow(builder: Any, x: Any, pairs: Any, share: Any, target: Any) -> None:
    """x (2 pairs, 32) in float32 times share (32,) as words (pairs, 32) of two rows each."""
    factors = [load(builder, share, FLOATS, k) for k in _BOTH]
    with counted(builder, pairs) as pair:
        rows = offset(builder, x, (pair, 2 * _ROW))
        product = [builder.fmul(load(builder, rows, FLOATS, k), factors[k % 2]) for k in _FOUR]
        _store_words(builder, product, offset(builder, target, (pair, _ROW)))


@emitted(*(_int64,) * 3)
def scale_rows(builder: Any, x: Any, rows: Any, share: Any) -> None:
    """x (rows, 32) times share (32,), in place."""
    factors = [load(builder, share, FLOATS, k) for k in _BOTH]
    with counted(builder, rows) as r:
        row = offset(builder, x, (r, _ROW))
        for k in _BOTH:
            store(builder, builder.fmul(load(builder, row, FLOATS, k), factors[k]), row, k)


@emitted(*(_int64,) * 4)
def column_products(builder: Any, a: Any, b: Any, n: Any, target: Any) -> None:
    """target (32,) = the sums of products of the columns of words a and b (n, 32)."""
    sums = [variable(builder, constant(0.0)) for _ in _BOTH]
    with counted(builder, n) as index:
        row_a, row_b = (offset(builder, address, (index, _ROW)) for address in (a, b))
        for k in _BOTH:
            sides = (load(builder, row, WORDS, k) for row in (row_a, row_b))
            builder.store(dot(builder, builder.load(sums[k]), *sides), sums[k])
    for k in _BOTH:
        store(builder, builder.load(sums[k]), target, k)


@emitted(*(_int64,) * 3, _float32)
def share_left(builder: Any, share: Any, before: Any, after: Any, scale: Any) -> None:
    """share (32,) = 2^(scale (before - after))."""
    for k in _BOTH:
        less = builder.fsub(load(builder, before, FLOATS, k), load(builder, after, FLOATS, k))
        store(builder, exp2(builder, builder.fmul(splat(builder, scale), less)), share, k)


def _store_words(builder: Any, rows: list[Any], target: Any) -> None:
    """Two rows of float32, (2, 2 vectors), as a row of words: two bfloat16 that stood under each other."""
    for k in _BOTH:
        halves = narrowed(builder, rows[k], rows[k + 2])
        store(builder, shuffled(builder, halves, halves, zipped(2 * LANES)), target, k)
