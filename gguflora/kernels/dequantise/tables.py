"""Types whose four bits are an index into a table of 16 values.

Each function takes blocks (n, bytes per block) of uint8 and gives their values (n, elements per block) in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.kernels.dequantise.fields import f16, scaled, unpack

# ggml-common.h:1120, kvalues_iq4nl: levels that lie closer where weights are many
IQ4 = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
# ggml-common.h:1126, kvalues_mxfp4: the 16 numbers of a 4-bit float (E2M1), doubled so that they are whole. Its
# negative zero is a plain zero there.
E2M1_DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)


def iq4_nl(blocks: Tensor) -> Tensor:
    """32 elements with one scale."""
    # f16 d | 16 bytes of nibbles; value = d * table[nibble] (ggml-quants.c:2725)
    return _looked_up(IQ4, blocks[:, 2:18]) * f16(blocks[:, 0:2])


def iq4_xs(blocks: Tensor) -> Tensor:
    """256 elements in 8 groups with a scale of six bits around 32."""
    # f16 d | 2 bytes of scales' high 2 bits | 4 bytes of their low nibbles | 128 bytes of nibbles
    # value = d * (scale - 32) * table[nibble] (ggml-quants.c:2743)
    scale = unpack(blocks[:, 4:8], 4, run=1) | unpack(blocks[:, 2:4], 2, run=1) << 4  # (n, 8)
    return scaled(_looked_up(IQ4, blocks[:, 8:136]), f16(blocks[:, 0:2]) * (scale.float() - 32))


def mxfp4(blocks: Tensor) -> Tensor:
    """32 elements with one power of two (OCP Microscaling Formats v1.0)."""
    # exponent byte | 16 bytes of nibbles; value = 2^(exponent - 128) * doubled table[nibble] (ggml-quants.c:569)
    exponent = blocks[:, 0:1].to(torch.int32) - 1
    # The bits of a float32: 2^-128 and 2^-127 are below its normal range (ggml-impl.h, ggml_e8m0_to_fp32_half).
    bits = torch.where(exponent < 1, 0x00400000 >> -exponent.clamp(max=0), exponent << 23)
    return _looked_up(E2M1_DOUBLED, blocks[:, 1:17]) * bits.view(torch.float32)


def _looked_up(table: tuple[float, ...], packed: Tensor) -> Tensor:
    """table[nibble] of groups of 32: (n, b) -> (n, 2 b)."""
    values = torch.tensor(table, dtype=torch.float32, device=packed.device)
    return values[unpack(packed, 4, run=16).int()]
