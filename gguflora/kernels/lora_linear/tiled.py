"""explicit.py's layers with their pairs by tiles, on processors whose best instruction for bfloat16 is AVX512-BF16's.

A library's product of a pair is thin, takes up to three times the time that its operations need, and reads what the
layer reads once more. Here what a pair adds is summed in the registers in which the layer's own product is; tiles are
faster for that too (docs/log.md). What tiles can't do explicit.py does: dropout, float32, odd ranks and sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gguflora.kernels.lora_linear import explicit
from gguflora.kernels.lora_linear.explicit import PairDelta, StackedPairs
from gguflora.kernels.lora_linear.panels import PANEL_ROW
from gguflora.kernels.lora_linear.tiled_kernels import (
    DEPTH,
    FEW_ROWS,
    ROWS,
    narrow_kernel,
    over_rows_kernel,
    wide_kernel,
)
from gguflora.kernels.threads import place, run
from gguflora.kernels.tiles import TILE_COLUMNS, TILE_ROWS


class Block(NamedTuple):
    """A block of a second product c M2: what is added to some columns of the first. Kernels read them in this order."""

    start: int  # column of the product
    end: int
    offset: int  # bytes from a row of c to what these columns read of it
    matrix: int  # address of M2
    row: int  # bytes from one of its rows to the next
    words: int  # that are summed over


def suits(x: Tensor, weight: Tensor, pairs: StackedPairs | None, mask: Tensor | None) -> bool:
    """Whether tiles can do a layer's products: x is (T, in) or the gradient (T, O)."""
    whole = all(size % TILE_COLUMNS == 0 for size in weight.shape)
    if x.dtype is not torch.bfloat16 or len(x) < TILE_ROWS or mask is not None or not whole:
        return False
    blocks = () if pairs is None else pairs.blocks
    return all(
        block.rows.start % TILE_COLUMNS == 0 and len(block.b) % TILE_COLUMNS == 0 and block.b.shape[1] % 2 == 0
        for block in blocks
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pairs: StackedPairs | None,
    y: Tensor,
    c: Tensor | None,
    mask: Tensor | None = None,
) -> None:
    """Write y (T, O) and c (T, R) for x (T, in) and weight (O, in)."""
    if not suits(x, weight, pairs, mask):
        explicit.forward(x, weight, bias, pairs, y, c, mask)
        return
    if pairs is None or c is None:
        _wide(x, weight, False, y, None, [])
    else:
        _narrow(x, pairs.a, False, pairs.scale, c)
        blocks = [
            Block(b.rows.start, b.rows.stop, b.columns.start * b.b.element_size(), *place(b.b), b.b.shape[1] // 2)
            for b in pairs.blocks
        ]
        _wide(x, weight, False, y, c, blocks)
    if bias is not None:
        y += bias


def backward(
    dy: Tensor, c: Tensor | None, weight: Tensor, pairs: StackedPairs | None, dx: Tensor, mask: Tensor | None = None
) -> PairDelta | None:
    """Write dx (T, in) for dy (T, O) and the forward's c; gives what the pairs' gradients need, None without pairs."""
    if not suits(dy, weight, pairs, mask):
        return explicit.backward(dy, c, weight, pairs, dx, mask)
    if pairs is None or c is None:
        _wide(dy, weight, True, dx, None, [])
        return None
    dc = dy.new_empty(len(dy), len(pairs.a))
    db = []
    for block in pairs.blocks:
        rows = dy[:, block.rows]
        _narrow(rows, block.b, True, pairs.scale, dc[:, block.columns])
        db.append(_over_rows(rows, c[:, block.columns]).t())
    a = pairs.a
    _wide(dy, weight, True, dx, dc, [Block(0, a.shape[1], 0, *place(a), len(a) // 2)])
    return PairDelta(dc, tuple(db), None)


def a_gradient(delta: PairDelta, x: Tensor) -> Tensor:
    """dA (R, in) for the input x (T, in)."""
    if delta.mask is not None or x.dtype is not torch.bfloat16 or x.shape[1] % TILE_COLUMNS:
        return explicit.a_gradient(delta, x)
    return _over_rows(x, delta.dc)


def _wide(a: Tensor, matrix: Tensor, standing: bool, y: Tensor, c: Tensor | None, blocks: Sequence[Block]) -> None:
    """y (T, N) = a M + c M2: M is the matrix where it stands, else its transpose."""
    tokens, columns = y.shape
    n = a.shape[1] // 2
    table = np.array(blocks, np.int64)
    deepest = max((block.words for block in blocks), default=0)
    second = deepest * PANEL_ROW
    scratch = _scratch(DEPTH * PANEL_ROW + second + ROWS * PANEL_ROW)
    counter = torch.zeros(1, dtype=torch.int64)
    panels = columns // TILE_COLUMNS
    run(
        wide_kernel.address,
        panels * -(-tokens // ROWS),
        counter.data_ptr(),
        tokens,
        panels,
        *place(a),
        *place(matrix),
        n,
        standing,
        *place(y),
        table.ctypes.data,
        len(blocks),
        *((0, 0) if c is None else place(c)),
        *place(scratch),
        second,
    )


def _narrow(a: Tensor, matrix: Tensor, standing: bool, scale: float, y: Tensor) -> None:
    """y (T, N) = scale a M, for few columns."""
    tokens, columns = y.shape
    n = a.shape[1] // 2
    scratch = _scratch(TILE_ROWS * PANEL_ROW + -(-columns // TILE_COLUMNS) * n * PANEL_ROW)
    counter = torch.zeros(1, dtype=torch.int64)
    run(
        narrow_kernel.address,
        -(-tokens // FEW_ROWS),
        counter.data_ptr(),
        tokens,
        columns,
        *place(a),
        *place(matrix),
        n,
        standing,
        *place(y),
        float(scale),
        *place(scratch),
    )


def _over_rows(a: Tensor, c: Tensor) -> Tensor:
    """c^T a (R, N) in float32, for c (T, R) and a (T, N)."""
    tokens, ranks = c.shape
    room = -(-ranks // TILE_ROWS) * TILE_ROWS
    y = torch.empty(room, a.shape[1])
    pairs = (tokens + 1) // 2
    scratch = _scratch(pairs * (room * 4 + PANEL_ROW))
    counter = torch.zeros(1, dtype=torch.int64)
    run(
        over_rows_kernel.address,
        a.shape[1] // TILE_COLUMNS,
        counter.data_ptr(),
        tokens,
        ranks,
        *place(a),
        *place(c),
        *place(y),
        *place(scratch),
    )
    return y[:ranks]


def _scratch(size: int) -> Tensor:
    """So many bytes for each thread: (threads, bytes)."""
    return torch.empty(torch.get_num_threads(), size, dtype=torch.uint8)
