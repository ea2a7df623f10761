"""Matrices into panels: words (n, 32) that tiles multiply rows with, for 32 columns of a product (T, N) = a (T, 2 n) M.

M is the transpose of a matrix (N, 2 n), a row for each column of the product; or a matrix (2 n, N) as it stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gguflora.kernels.numeric import numbers, part
from gguflora.kernels.tiles import TILE_COLUMNS, pair_columns, transpose
from gguflora.kernels.vectors import LANES

PANEL_ROW = TILE_COLUMNS * 4


@part
def pack(matrix: Any, row: Any, standing: Any, column: Any, n: Any, panel: Any) -> None:
    """The panel of 32 columns from `column` on. `standing`: M is the matrix, not its transpose; n: words."""
    if standing:
        pair_columns(matrix + column * 2, row, panel, n)
    else:
        whole = n // LANES * LANES
        for r in range(0, TILE_COLUMNS, LANES):
            for w in range(0, whole, LANES):
                transpose(matrix + (column + r) * row + w * 4, row, panel + w * PANEL_ROW + r * 4, PANEL_ROW)
        for w in range(whole, n):
            to = numbers(panel + w * PANEL_ROW, TILE_COLUMNS, np.uint32)
            for c in range(TILE_COLUMNS):
                to[c] = numbers(matrix + (column + c) * row + w * 4, 1, np.uint32)[0]


@part
def pack_some(matrix: Any, row: Any, standing: Any, column: Any, columns: Any, n: Any, panel: Any) -> None:
    """The same of fewer than 32 columns, with zeros for those that are missing."""
    for w in range(n):
        to = numbers(panel + w * PANEL_ROW, TILE_COLUMNS, np.uint32)
        to[columns:] = 0
        if standing:
            first = numbers(matrix + 2 * w * row + column * 2, columns, np.uint16)
            second = numbers(matrix + (2 * w + 1) * row + column * 2, columns, np.uint16)
            for c in range(columns):
                to[c] = np.uint32(first[c]) | (np.uint32(second[c]) << np.uint32(16))
        else:
            for c in range(columns):
                to[c] = numbers(matrix + (column + c) * row + w * 4, 1, np.uint32)[0]


@part
def pack_pairs_of_rows(source: Any, row: Any, rows: Any, columns: Any, target: Any, room: Any) -> None:
    """Rows of bfloat16 as words ((rows + 1) / 2, room) of two rows each; zeros beyond rows and columns."""
    for p in range((rows + 1) // 2):
        to = numbers(target + p * room * 4, room, np.uint32)
        to[columns:] = 0
        first = numbers(source + 2 * p * row, columns, np.uint16)
        if 2 * p + 1 < rows:
            second = numbers(source + (2 * p + 1) * row, columns, np.uint16)
            for c in range(columns):
                to[c] = np.uint32(first[c]) | (np.uint32(second[c]) << np.uint32(16))
        else:
            for c in range(columns):
                to[c] = np.uint32(first[c])
