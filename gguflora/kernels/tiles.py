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
    narrowed,
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
    sums = _sums(builder, c, c_row, add, 2)
    _add_product(builder, sums, a, row, column, b, b_row, n)
    for (r, k), place in sums.items():
        store(builder, builder.load(place), builder.add(c, builder.mul(c_row, INT64(r))), k)


@emitted(*(types.int64,) * 8, types.boolean)
def multiply_half(
    builder: Any, a: Any, row: Any, column: Any, b: Any, b_row: Any, n: Any, c: Any, c_row: Any, add: Any
) -> None:
    """The same for the first 16 columns alone."""
    sums = _sums(builder, c, c_row, add, 1)
    _add_product(builder, sums, a, row, column, b, b_row, n)
    for (r, k), place in sums.items():
        store(builder, builder.load(place), builder.add(c, builder.mul(c_row, INT64(r))), k)


@emitted(*(types.int64,) * 10, types.boolean, types.int64, types.int64)
def multiply_both(
    builder: Any,
    a: Any,
    row: Any,
    b: Any,
    n: Any,
    a2: Any,
    row2: Any,
    b2: Any,
    n2: Any,
    c: Any,
    c_row: Any,
    add: Any,
    y: Any,
    y_row: Any,
) -> None:
    """Write y (8, 32) in bfloat16 = A B + A2 B2, and with `add` C, rounded once.

    Arguments as those of `multiply`, but that words of a stand next to each other and rows of b are under each other;
    rows of y are y_row bytes apart.
    """
    sums = _sums(builder, c, c_row, add, 2)
    column, b_row = INT64(4), INT64(2 * VECTOR_BYTES)
    _add_product(builder, sums, a, row, column, b, b_row, n)
    _add_product(builder, sums, a2, row2, column, b2, b_row, n2)
    for r in range(TILE_ROWS):
        halves = narrowed(builder, *(builder.load(sums[r, k]) for k in range(2)))
        store(builder, halves, builder.add(y, builder.mul(y_row, INT64(r))))


def _sums(builder: Any, c: Any, c_row: Any, add: Any, vectors: int) -> dict[tuple[int, int], Any]:
    """A place for each vector of a tile's sums, by row and vector: with C in it, or with zeros."""
    sums = {(r, k): variable(builder, constant(0.0)) for r in range(TILE_ROWS) for k in range(vectors)}
    with builder.if_then(add):
        for (r, k), place in sums.items():
            builder.store(load(builder, builder.add(c, builder.mul(c_row, INT64(r))), FLOATS, k), place)
    return sums


def _add_product(
    builder: Any, sums: dict[tuple[int, int], Any], a: Any, row: Any, column: Any, b: Any, b_row: Any, n: Any
) -> None:
    """Add to a tile's sums the product of words a and b."""
    rows = [builder.add(a, builder.mul(row, INT64(r))) for r in range(TILE_ROWS)]
    vectors = len(sums) // TILE_ROWS
    with counted(builder, n) as index:
        along = builder.mul(index, column)
        at = builder.add(b, builder.mul(index, b_row))
        columns = [load(builder, at, WORDS, k) for k in range(vectors)]
        spread = [splat(builder, load(builder, builder.add(start, along), INT32)) for start in rows]
        for (r, k), place in sums.items():
            builder.store(dot(builder, builder.load(place), spread[r], columns[k]), place)


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
        to = offset(builder, builder.add(target, builder.mul(p, both)), (v, 2 * VECTOR_BYTES))
        _pair(builder, first, builder.add(first, row), to)


@emitted(*(types.int64,) * 4)
def pair_columns(builder: Any, source: Any, row: Any, target: Any, pairs: Any) -> None:
    """The first 32 columns of rows (2 n, ...) of bfloat16, so many bytes apart, to words (n, 32) of two rows each."""
    with counted(builder, pairs) as p:
        first = builder.add(source, builder.mul(p, builder.mul(row, INT64(2))))
        _pair(builder, first, builder.add(first, row), offset(builder, target, (p, 2 * VECTOR_BYTES)))


def _pair(builder: Any, first: Any, second: Any, target: Any) -> None:
    """32 bfloat16 at each of two addresses to 32 words of one of each."""
    upper, lower = load(builder, first, HALVES), load(builder, second, HALVES)
    for part in range(2):
        order = zipped(2 * LANES, part * LANES, (2 + part) * LANES)
        store(builder, shuffled(builder, upper, lower, order), target, part)


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
