"""tiled.py's three products on one thread. What the words of each are, tiled.py says where it runs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gguflora.kernels.lora_linear.panels import PANEL_ROW, pack, pack_pairs_of_rows, pack_some
from gguflora.kernels.numeric import kernel, my_number, numbers, part, put, single, words_of
from gguflora.kernels.tiles import TILE_COLUMNS, TILE_ROWS, multiply, multiply_both, multiply_half, pair_columns
from gguflora.kernels.vectors import next_number

ROWS = 512  # of an item: what they are read from stays in the second cache
DEPTH = 1024  # words of a panel: likewise
FEW_ROWS = 64  # of an item of narrow_kernel
BLOCK_WORDS = 6  # of a Block of tiled.py


@part
def _second(table: Any, blocks: Any, column: Any) -> Any:
    """The block of the second product that a column is in; `blocks`, one too many, where it is in none."""
    for index in range(blocks):
        block = numbers(table + index * BLOCK_WORDS * 8, BLOCK_WORDS, np.int64)
        if block[0] <= column < block[1]:
            return index
    return blocks


@kernel
def wide_kernel(pointer: Any) -> None:
    """y (T, N) = a M + c M2, rounded once, in items of ROWS rows and 32 columns."""
    words = words_of(pointer)
    tokens, panels = words[2], words[3]
    a, a_row, matrix, matrix_row, n, standing = words[4], words[5], words[6], words[7], words[8], words[9]
    y, y_row, table, blocks, c, c_row = words[10], words[11], words[12], words[13], words[14], words[15]
    panel = words[16] + my_number()[0] * words[17]
    second = panel + DEPTH * PANEL_ROW
    sums = second + words[18]
    index = next_number(words[1])
    while index < words[0]:
        start, column = index // panels * ROWS, index % panels * TILE_COLUMNS
        end = min(start + ROWS, tokens)
        found = _second(table, blocks, column)
        n2 = np.int64(0)
        c_at = c
        if found < blocks:
            block = numbers(table + found * BLOCK_WORDS * 8, BLOCK_WORDS, np.int64)
            c_at, n2 = c + block[2], block[5]
            pack(block[3], block[4], standing, column - block[0], n2, second)
        for depth in range(0, n, DEPTH):
            here = min(DEPTH, n - depth)
            at = matrix + depth * 2 * matrix_row if standing else matrix + depth * 4
            pack(at, matrix_row, standing, column, here, panel)
            for t in range(start, end, TILE_ROWS):
                row = min(t, tokens - TILE_ROWS)  # the last tile reaches back: what it computes again is the same
                left, kept = a + row * a_row + depth * 4, sums + (t - start) * PANEL_ROW
                if depth + here < n:
                    multiply(left, a_row, 4, panel, PANEL_ROW, here, kept, PANEL_ROW, depth > 0)
                else:
                    multiply_both(
                        left, a_row, panel, here, c_at + row * c_row, c_row, second, n2,
                        kept, PANEL_ROW, depth > 0, y + row * y_row + column * 2, y_row,
                    )  # fmt: skip
        index = next_number(words[1])


@kernel
def narrow_kernel(pointer: Any) -> None:
    """y (T, N) = scale a M for few columns N, in items of FEW_ROWS rows."""
    words = words_of(pointer)
    tokens, columns, scale = words[2], words[3], single(words[12])
    a, a_row, matrix, matrix_row, n, standing = words[4], words[5], words[6], words[7], words[8], words[9]
    y, y_row = words[10], words[11]
    tile = words[13] + my_number()[0] * words[14]
    panels = tile + TILE_ROWS * PANEL_ROW
    for column in range(0, columns, TILE_COLUMNS):
        some = min(TILE_COLUMNS, columns - column)
        pack_some(matrix, matrix_row, standing, column, some, n, panels + column // TILE_COLUMNS * n * PANEL_ROW)
    index = next_number(words[1])
    while index < words[0]:
        for t in range(index * FEW_ROWS, min((index + 1) * FEW_ROWS, tokens), TILE_ROWS):
            row = min(t, tokens - TILE_ROWS)
            for column in range(0, columns, TILE_COLUMNS):
                some = min(TILE_COLUMNS, columns - column)
                panel = panels + column // TILE_COLUMNS * n * PANEL_ROW
                if some <= TILE_COLUMNS // 2:
                    multiply_half(a + row * a_row, a_row, 4, panel, PANEL_ROW, n, tile, PANEL_ROW, False)
                else:
                    multiply(a + row * a_row, a_row, 4, panel, PANEL_ROW, n, tile, PANEL_ROW, False)
                for r in range(TILE_ROWS):
                    x = numbers(tile + r * PANEL_ROW, TILE_COLUMNS, np.float32)
                    to = numbers(y + (row + r) * y_row + column * 2, some, np.uint16)
                    for i in range(some):
                        put(to, i, x[i] * scale)
        index = next_number(words[1])


@kernel
def over_rows_kernel(pointer: Any) -> None:
    """y (R, N) = c^T a in float32 for c (T, R) and a (T, N), in items of 32 columns. R is filled up to whole tiles."""
    words = words_of(pointer)
    tokens, ranks = words[2], words[3]
    a, a_row, c, c_row, y, y_row = words[4], words[5], words[6], words[7], words[8], words[9]
    left = words[10] + my_number()[0] * words[11]
    room = -(-ranks // TILE_ROWS) * TILE_ROWS
    pairs = (tokens + 1) // 2
    panel = left + pairs * room * 4
    pack_pairs_of_rows(c, c_row, tokens, ranks, left, room)
    index = next_number(words[1])
    while index < words[0]:
        column = index * TILE_COLUMNS
        pair_columns(a + column * 2, a_row, panel, tokens // 2)
        if tokens % 2:
            pack_pairs_of_rows(
                a + (tokens - 1) * a_row + column * 2,
                a_row,
                1,
                TILE_COLUMNS,
                panel + (pairs - 1) * PANEL_ROW,
                TILE_COLUMNS,
            )
        for r in range(0, room, TILE_ROWS):
            multiply(left + r * 4, 4, room * 4, panel, PANEL_ROW, pairs, y + r * y_row + column * 4, y_row, False)
        index = next_number(words[1])
