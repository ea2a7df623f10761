"""Whether packed rows hold finite values alone, asked of the blocks' scales and not of every value."""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.gguf.format import BLOCKS, GgmlType
from gguflora.kernels.dequantise.fields import f16
from gguflora.kernels.dequantise.reference import dequantise

CHUNK = 2**18  # blocks; of F32 that is 1 MB at once, of MXFP4, at most, 32 MB

# Where a block's float16 scales and minimums lie (kernels/dequantise/legacy.py, k_quants.py, tables.py). All else in
# the block is whole numbers, so that its values are finite exactly where these are.
SCALES = {
    GgmlType.F16: slice(0, 2),
    GgmlType.Q4_0: slice(0, 2),
    GgmlType.Q4_1: slice(0, 4),
    GgmlType.Q5_0: slice(0, 2),
    GgmlType.Q5_1: slice(0, 4),
    GgmlType.Q8_0: slice(0, 2),
    GgmlType.Q2_K: slice(80, 84),
    GgmlType.Q3_K: slice(108, 110),
    GgmlType.Q4_K: slice(0, 4),
    GgmlType.Q5_K: slice(0, 4),
    GgmlType.Q6_K: slice(208, 210),
    GgmlType.IQ4_NL: slice(0, 2),
    GgmlType.IQ4_XS: slice(0, 2),
}


def all_finite(packed: Tensor, type: GgmlType) -> bool:
    """Whether every value of packed rows is finite.

    Args:
        packed: (rows, bytes per row), uint8, contiguous.
        type: the rows' type.
    """
    blocks = packed.view(-1, BLOCKS[type].nbytes)
    return all(_finite(part, type) for part in torch.split(blocks, CHUNK))


def _finite(blocks: Tensor, type: GgmlType) -> bool:
    if type in SCALES:
        return bool(f16(blocks[:, SCALES[type]]).isfinite().all())
    if type is GgmlType.MXFP4:  # a scale is a power of two, of which the three largest may be too large for a float32
        blocks = blocks[blocks[:, 0] >= 253]
    return bool(dequantise(blocks, type).isfinite().all())
