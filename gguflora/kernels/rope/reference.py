"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the two layouts that GGUF models have.

A head's elements turn in pairs, pair i by the angle position * theta_i. In a `consecutive` model the pair is
(2i, 2i+1), in a `half_split` one (i, i + dim/2): ggml's NORMAL and NEOX modes (ggml/src/ggml-cpu/ops.cpp, rope).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool) -> Tensor:
    """Turn each head by its position.

    Args:
        x: (T, heads, h) queries or keys.
        cos: (T, h/2) cosines of the angles; in float32 at least, the product is made in that precision.
        sin: (T, h/2) sines.
        half_split: which elements make a pair.
    """
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, h/2)
    wide = x.to(cos.dtype)
    if half_split:
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    else:
        first, second = wide[..., 0::2], wide[..., 1::2]
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    return turned.to(x.dtype)
