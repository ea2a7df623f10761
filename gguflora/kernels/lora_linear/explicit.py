"""Linear layers that share an input, with their pairs, as a pair of forward and backward.

The layers' weights lie under each other in W (O, in), so x is read once. Their pairs do too: A (R, in) stacks the
lora_a, and B (O, R) holds each lora_b in its layer's rows and its pair's columns, zero elsewhere.

    y  = x W^T + bias + s c B^T            c = (m x) A^T       m is dropout's mask, 1 without
    dx = dy W + m (dc A)                   dc = s dy B
    dA = dc^T (m x)    dB = s dy^T c       (of dB only the pairs' own blocks are meant)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StackedPairs:
    """Pairs of layers that share an input, in the compute dtype.

    Attributes:
        a: (R, in); b: (O, R).
        scale: alpha / rank, times the user's scale.
    """

    a: Tensor
    b: Tensor
    scale: float


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pairs: StackedPairs | None,
    y: Tensor,
    c: Tensor | None,
    mask: Tensor | None = None,
) -> None:
    """Write y (T, O) and c (T, R) for x (T, in) and weight (O, in)."""
    torch.mm(x, weight.t(), out=y)
    if bias is not None:
        y += bias
    if pairs is not None and c is not None:
        torch.mm(x if mask is None else x * mask, pairs.a.t(), out=c)
        y.addmm_(c, pairs.b.t(), alpha=pairs.scale)


def backward(
    dy: Tensor,
    x: Tensor,
    c: Tensor | None,
    weight: Tensor,
    pairs: StackedPairs | None,
    dx: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Write dx (T, in) unless it is None; give dA (R, in) and dB (O, R), or None without pairs."""
    if dx is not None:
        torch.mm(dy, weight, out=dx)
    if pairs is None or c is None:
        return None
    dc = torch.mm(dy, pairs.b).mul_(pairs.scale)  # (T, R)
    if dx is not None and mask is None:
        dx.addmm_(dc, pairs.a)
    elif dx is not None and mask is not None:
        dx.addcmul_(torch.mm(dc, pairs.a), mask)
    return dc.t() @ (x if mask is None else x * mask), (dy.t() @ c).mul_(pairs.scale)
