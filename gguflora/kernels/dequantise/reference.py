"""Packed blocks to float32, in plain PyTorch: one function per type, bit-equal to ggml's reference.

Each function takes blocks (n, bytes per block) of uint8 and gives their values (n, elements per block). Layouts:
ggml/src/ggml-common.h; arithmetic: ggml/src/ggml-quants.c, dequantize_row_*.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gguflora.errors import ModelError
from gguflora.gguf.format import BLOCKS, GgmlType
from gguflora.kernels.dequantise import k_quants, legacy, tables
from gguflora.kernels.dequantise.fields import f16, numbers


def dequantise(packed: Tensor, type: GgmlType) -> Tensor:
    """Values of packed rows.

    Args:
        packed: (..., bytes per row), uint8; any view.
        type: the rows' type.

    Returns:
        (..., elements per row), float32; of an F32 tensor maybe a view of `packed`.

    Raises:
        ModelError: the type is not supported yet.
    """
    function = FUNCTIONS.get(type)
    if function is None:
        raise ModelError(f"tensors of type {type.name} are not supported yet.")
    block = BLOCKS[type]
    blocks = torch.unflatten(packed, -1, (-1, block.nbytes))  # (..., blocks per row, bytes per block)
    elements = blocks.shape[-2] * block.elements
    return function(blocks.flatten(0, -2)).reshape(*packed.shape[:-1], elements)


def _f32(blocks: Tensor) -> Tensor:
    return numbers(blocks, torch.float32)


def _bf16(blocks: Tensor) -> Tensor:
    return numbers(blocks, torch.bfloat16).float()


FUNCTIONS: dict[GgmlType, Callable[[Tensor], Tensor]] = {
    GgmlType.F32: _f32,
    GgmlType.F16: f16,
    GgmlType.BF16: _bf16,
    GgmlType.Q4_0: legacy.q4_0,
    GgmlType.Q4_1: legacy.q4_1,
    GgmlType.Q5_0: legacy.q5_0,
    GgmlType.Q5_1: legacy.q5_1,
    GgmlType.Q8_0: legacy.q8_0,
    GgmlType.Q2_K: k_quants.q2_k,
    GgmlType.Q3_K: k_quants.q3_k,
    GgmlType.Q4_K: k_quants.q4_k,
    GgmlType.Q5_K: k_quants.q5_k,
    GgmlType.Q6_K: k_quants.q6_k,
    GgmlType.IQ4_NL: tables.iq4_nl,
    GgmlType.IQ4_XS: tables.iq4_xs,
    GgmlType.MXFP4: tables.mxfp4,
}
