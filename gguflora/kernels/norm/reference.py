"""RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467): y = x / sqrt(mean(x^2) + epsilon) * weight."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise each row of x (T, D) by its root mean square, times weight (D,)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight
