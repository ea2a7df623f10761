"""RMS norm as a pair of forward and backward over given buffers.

y  = x r w                        r = 1 / sqrt(mean(x^2) + epsilon), one for each row
dx = r (g - x r^2 mean(g x))      g = dy w
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, epsilon: float, y: Tensor, r: Tensor) -> None:
    """Write y (T, D), in its own dtype, and r (T, 1) for x (T, D) and weight (D,)."""
    torch.mean(x.square(), -1, keepdim=True, out=r)
    r.add_(epsilon).rsqrt_()
    apply(x, weight, r, y)


def apply(x: Tensor, weight: Tensor, r: Tensor, y: Tensor) -> None:
    """Write y = x r w once more from a known r."""
    y.copy_((x * r).mul_(weight))


def backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dx: Tensor, add: bool = False) -> None:
    """Write, or add to, dx (T, D) for dy (T, D)."""
    g = dy.to(x.dtype) * weight
    inner = (g * x).mean(-1, keepdim=True).mul_(r.square())  # (T, 1)
    g.addcmul_(x, inner, value=-1).mul_(r)
    if add:
        dx += g
    else:
        dx.copy_(g)
