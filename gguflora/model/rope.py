"""The angles of rotary position embedding, from a layer's RopeSpec."""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.arch import RopeSpec


def angles(spec: RopeSpec, factors: Tensor | None, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for each position.

    Args:
        spec: the layer's rope.
        factors: (dim/2,) divisors of the frequencies (Llama 3's rope_freqs), or None.
        positions: (T,) position of each token in its document.
        dtype: of the result; angles are computed in float64.

    Returns:
        cos (T, dim/2), sin (T, dim/2).
    """
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float64) / spec.dim
    theta = spec.scale * spec.base**-exponents
    if factors is not None:
        theta = theta / factors.double()
    turns = positions.double()[:, None] * theta  # (T, dim/2)
    return turns.cos().to(dtype), turns.sin().to(dtype)
