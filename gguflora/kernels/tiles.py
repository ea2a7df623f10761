"""Products of bfloat16 in tiles of 8 rows and 32 columns, whose sums stay in the processor's registers, and what brings
matrices into the order that these want.

Of a product A B, sums over words, pairs of neighbours along what is summed over: of A a word is read and spread to all
lanes; B stands in words already, (n, 32), one row for each two rows of the matrix.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gguflora.kernels.vectors import (
    FLOATS,
    HALVES,
    INT32,
    INT64,
    LANES,
    VECTOR_BYTES,
    WORDS,
    constant,
    counted,
    dot,
    emitted,
    load,
    offset,
    shuffled,
    splat,
    store,
    types,
    variable,
    zipped,
)

TILE_ROWS, TILE_COLUMNS = 8, 2 * LANES
"""16 sums: enough that none waits for the one before it, and a word is read for each two products."""


@emitted(*(types.int64,) * 8, types.boolean)
def multiply(
    builder: Any, a: Any, row: Any, column: Any, b: Any, b_row: Any, n: Any, c: Any, c_row: Any, add: Any
) -> None:
    """Write C (8, 32) = A B in float32, or with `add` add it to what stands there.

    a, b and c are addresses: of words (8, n), `row` and `column` bytes from one to the next; of words (n, 32), rows
    b_row bytes apart; and of float32 (8, 32), rows c_row bytes apart.
    """
    places = [(r, k) for r in range(TILE_ROWS) for k in range(TILE_COLUMNS // LANES)]
    rows_c = [builder.add(c, builder.mul(c_row, INT64(r))) for r in range(TILE_ROWS)]
    sums = {place: variable(builder, constant(0.0)) for place in places}
    with builder.if_then(add):
        for r, k in places:
            builder.store(load(builder, rows_c[r], FLOATS, k), sums[r, k])
    rows_a = [builder.add(a, builder.mul(row, INT64(r))) for r in range(TILE_ROWS)]
    with counted(builder, n) as index:
        along = builder.mul(index, column)
        at = builder.add(b, builder.mul(index, b_row))
        columns = [load(builder, at, WORDS, k) for k in range(TILE_COLUMNS // LANES)]
        spread = [splat(builder, load(builder, builder.add(start, along), INT32)) for start in rows_a]
        for r, k in places:
            builder.store(dot(builder, builder.load(sums[r, k]), spread[r], columns[k]), sums[r, k])
    for r, k in places:
        store(builder, builder.load(sums[r, k]), rows_c[r], k)


@emitted(*(types.int64,) * 4)
def transpose(builder: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> None:
    """16 x 16 words, rows so many bytes apart."""
    rows = [load(builder, builder.add(source, builder.mul(source_row, INT64(r))), WORDS) for r in range(LANES)]
    half = LANES // 2
    for _ in range(4):  # to put rows i and i + 8 next to each other, element by element, halves what is left to sort
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        orders = zipped(LANES), zipped(LANES, half, LANES + half)
        rows = [shuffled(builder, *pair, order) for pair in pairs for order in orders]
    for r in range(LANES):
        store(builder, rows[r], builder.add(target, builder.mul(target_row, INT64(r))))


@emitted(*(types.int64,) * 4)
def pair_rows(builder: Any, source: Any, row: Any, target: Any, pairs: Any) -> None:
    """Rows (2 n, m) of bfloat16, so many bytes long and apart, to words (n, m) of two that stood under each other."""
    both = builder.mul(row, INT64(2))
    with counted(builder, pairs) as p, counted(builder, builder.sdiv(row, INT64(VECTOR_BYTES))) as v:
        first = offset(builder, builder.add(source, builder.mul(p, both)), (v, VECTOR_BYTES))
        upper, lower = load(builder, first, HALVES), load(builder, builder.add(first, row), HALVES)
        to = offset(builder, builder.add(target, builder.mul(p, both)), (v, 2 * VECTOR_BYTES))
        for part in range(2):
            order = zipped(2 * LANES, part * LANES, (2 + part) * LANES)
            store(builder, shuffled(builder, upper, lower, order), to, part)


@emitted(*(types.int64,) * 6)
def copy_rows(
    builder: Any, source: Any, source_row: Any, target: Any, target_row: Any, rows: Any, vectors: Any
) -> None:
    """Rows of so many vectors from here to there, so many bytes apart."""
    with counted(builder, rows) as r, counted(builder, vectors) as v:
        value = load(
            builder, offset(builder, builder.add(source, builder.mul(r, source_row)), (v, VECTOR_BYTES)), WORDS
        )
        store(builder, value, offset(builder, builder.add(target, builder.mul(r, target_row)), (v, VECTOR_BYTES)))


@emitted(*(types.int64,) * 2)
def clear(builder: Any, target: Any, vectors: Any) -> None:
    """So many vectors of zeros."""
    with counted(builder, vectors) as v:
        store(builder, ir.Constant(WORDS, [0] * LANES), offset(builder, target, (v, VECTOR_BYTES)))
