"""K-quants: blocks of 256 elements in groups of 16 or 32, whose scales are small integers times one float16.

Each function takes blocks (n, bytes per block) of uint8 and gives their values (n, 256) in float32. The scale of a
group is multiplied out first, as ggml does: another order would round differently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.kernels.dequantise.fields import f16, numbers, scaled, unpack


def q2_k(blocks: Tensor) -> Tensor:
    """Two bits above a minimum; 16 groups with a scale and a minimum of four bits each."""
    # 16 bytes: scale in the low half, minimum in the high | 64 bytes of 2 bits | f16 d | f16 dmin
    # value = d * scale * number - dmin * minimum (ggml-quants.c:961)
    scales = f16(blocks[:, 80:82]) * (blocks[:, 0:16] & 0x0F).float()  # (n, 16)
    minimums = f16(blocks[:, 82:84]) * (blocks[:, 0:16] >> 4).float()
    return scaled(unpack(blocks[:, 16:80], 2, run=32), scales, minimums)


def q3_k(blocks: Tensor) -> Tensor:
    """Three bits around 4; 16 groups with a scale of six bits around 32."""
    # 32 bytes of third bits | 64 bytes of 2 bits | scales: 8 bytes of low nibbles, 4 bytes of high 2 bits | f16 d
    # value = d * (scale - 32) * (number - 4) (ggml-quants.c:1305)
    number = unpack(blocks[:, 32:96], 2, run=32) | unpack(blocks[:, 0:32], 1, run=32) << 2
    scale = unpack(blocks[:, 96:104], 4, run=8) | unpack(blocks[:, 104:108], 2, run=4) << 4
    return scaled(number.float() - 4, f16(blocks[:, 108:110]) * (scale.float() - 32))


def q4_k(blocks: Tensor) -> Tensor:
    """Four bits above a minimum; 8 groups with a scale and a minimum of six bits each."""
    # f16 d | f16 dmin | 12 bytes of scales and minimums | 128 bytes of nibbles
    # value = d * scale * nibble - dmin * minimum (ggml-quants.c:1529)
    return scaled(unpack(blocks[:, 16:144], 4, run=32), *_scales_and_minimums(blocks[:, 0:16]))


def q5_k(blocks: Tensor) -> Tensor:
    """Five bits above a minimum; 8 groups with a scale and a minimum of six bits each."""
    # f16 d | f16 dmin | 12 bytes of scales and minimums | 32 bytes of fifth bits | 128 bytes of nibbles
    # value = d * scale * number - dmin * minimum (ggml-quants.c:1731)
    number = unpack(blocks[:, 48:176], 4, run=32) | unpack(blocks[:, 16:48], 1, run=32) << 4
    return scaled(number, *_scales_and_minimums(blocks[:, 0:16]))


def q6_k(blocks: Tensor) -> Tensor:
    """Six bits around 32; 16 groups with a scale of one signed byte."""
    # 128 bytes of low nibbles | 64 bytes of high 2 bits | 16 signed bytes of scales | f16 d
    # value = d * scale * (number - 32) (ggml-quants.c:1939)
    number = unpack(blocks[:, 0:128], 4, run=64) | unpack(blocks[:, 128:192], 2, run=32) << 4
    scale = numbers(blocks[:, 192:208], torch.int8)
    return scaled(number.float() - 32, f16(blocks[:, 208:210]) * scale.float())


def _scales_and_minimums(head: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: (n, 16) bytes -> twice (n, 8)."""
    # The first four scales and minimums fill six bits of bytes 0-3 and 4-7; the low nibbles of the last four share
    # bytes 8-11, and their high 2 bits are what the first bytes have left (ggml-quants.c:880).
    first, second, third = head[:, 4:8], head[:, 8:12], head[:, 12:16]
    scale = torch.cat([first & 0x3F, third & 0x0F | first >> 6 << 4], -1)
    minimum = torch.cat([second & 0x3F, third >> 4 | second >> 6 << 4], -1)
    return f16(head[:, 0:2]) * scale.float(), f16(head[:, 2:4]) * minimum.float()
