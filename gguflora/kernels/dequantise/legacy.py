"""Blocks of 32 elements with one scale, and in the `_1` types one minimum.

Each function takes blocks (n, bytes per block) of uint8 and gives their values (n, 32) in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.kernels.dequantise.fields import f16, numbers, unpack


def q4_0(blocks: Tensor) -> Tensor:
    """Four bits around 8."""
    # f16 d | 16 bytes of nibbles; value = (nibble - 8) * d (ggml-quants.c:459)
    return (unpack(blocks[:, 2:18], 4, run=16).float() - 8) * f16(blocks[:, 0:2])


def q4_1(blocks: Tensor) -> Tensor:
    """Four bits above a minimum."""
    # f16 d | f16 m | 16 bytes of nibbles; value = nibble * d + m (ggml-quants.c:479)
    return unpack(blocks[:, 4:20], 4, run=16).float() * f16(blocks[:, 0:2]) + f16(blocks[:, 2:4])


def q5_0(blocks: Tensor) -> Tensor:
    """Five bits around 16."""
    # f16 d | 32 fifth bits | 16 bytes of nibbles; value = (number - 16) * d (ggml-quants.c:500)
    number = _five_bits(fifth=blocks[:, 2:6], nibbles=blocks[:, 6:22])
    return (number.float() - 16) * f16(blocks[:, 0:2])


def q5_1(blocks: Tensor) -> Tensor:
    """Five bits above a minimum."""
    # f16 d | f16 m | 32 fifth bits | 16 bytes of nibbles; value = number * d + m (ggml-quants.c:526)
    number = _five_bits(fifth=blocks[:, 4:8], nibbles=blocks[:, 8:24])
    return number.float() * f16(blocks[:, 0:2]) + f16(blocks[:, 2:4])


def q8_0(blocks: Tensor) -> Tensor:
    """Signed bytes."""
    # f16 d | 32 signed bytes; value = byte * d (ggml-quants.c:553)
    return numbers(blocks[:, 2:34], torch.int8).float() * f16(blocks[:, 0:2])


def _five_bits(fifth: Tensor, nibbles: Tensor) -> Tensor:
    # bit j of the little-endian word belongs to element j: byte by byte, lowest bit first
    return unpack(nibbles, 4, run=16) | unpack(fifth, 1, run=1) << 4
