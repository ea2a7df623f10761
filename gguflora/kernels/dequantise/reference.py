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


def dequantise(packed: Tensor, type: GgmlType) -> Tensor:
    """Values of packed rows.

    Args:
        packed: (..., bytes per row), uint8.
        type: the rows' type.

    Returns:
        (..., elements per row), float32.

    Raises:
        ModelError: the type is not supported yet.
    """
    function = FUNCTIONS.get(type)
    if function is None:
        raise ModelError(f"tensors of type {type.name} are not supported yet.")
    block = BLOCKS[type]
    blocks = packed.reshape(-1, block.nbytes)
    elements = packed.shape[-1] // block.nbytes * block.elements
    return function(blocks).reshape(*packed.shape[:-1], elements)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Low halves of all bytes, then high halves: (n, b) -> (n, 2 b)."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=-1)


def _q4_1(blocks: Tensor) -> Tensor:
    # f16 d | f16 m | 16 bytes of nibbles; value = nibble * d + m (ggml-quants.c:479)
    scale, minimum = _f16(blocks[:, 0:2]), _f16(blocks[:, 2:4])
    return _nibbles(blocks[:, 4:20]).float() * scale + minimum


def _q8_0(blocks: Tensor) -> Tensor:
    # f16 d | 32 signed bytes; value = byte * d (ggml-quants.c:553)
    return blocks[:, 2:34].contiguous().view(torch.int8).float() * _f16(blocks[:, 0:2])


FUNCTIONS: dict[GgmlType, Callable[[Tensor], Tensor]] = {
    GgmlType.F32: _f32,
    GgmlType.F16: _f16,
    GgmlType.BF16: _bf16,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q8_0: _q8_0,
}
