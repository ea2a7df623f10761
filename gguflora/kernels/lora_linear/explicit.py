"""Linear layers that share an input, with their pairs, as a pair of forward and backward.

The layers' weights lie under each other in W (O, in), so x is read once. Their pairs do too: A (R, in) stacks the
lora_a, and B (O, R) holds each lora_b in its layer's rows and its pair's columns, zero elsewhere.

    y  = x W^T + bias + c B^T              c = s (m x) A^T     m is dropout's mask, 1 without
    dx = dy W + m (dc A)                   dc = s dy B
    dA = dc^T (m x)    dB = dy^T c         (of dB only the pairs' own blocks are meant)

The pairs' product is written first and the base's added to it, which the matrix product does in its accumulators: the
sum is rounded once. The other way round, what a young pair adds is less than half a unit in the last place of a
bfloat16 x W^T, and rounding takes all of it away (docs/log.md).
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
    if pairs is not None and c is not None:
        torch.mm(x if mask is None else x * mask, pairs.a.t(), out=c).mul_(pairs.scale)
        torch.mm(c, pairs.b.t(), out=y)
        y.addmm_(x, weight.t())
    else:
        torch.mm(x, weight.t(), out=y)
    if bias is not None:
        y += bias


def backward(
    dy: Tensor,
    x: Tensor,
    c: Tensor | None,
    weight: Tensor,
    pairs: StackedPairs | None,
    dx: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Write dx (T, in); give dA (R, in) and dB (O, R), or None without pairs."""
    if pairs is None or c is None:
        torch.mm(dy, weight, out=dx)
        return None
    dc = torch.mm(dy, pairs.b).mul_(pairs.scale)  # (T, R)
    torch.mm(dc, pairs.a, out=dx)
    if mask is not None:
        dx *= mask
    dx.addmm_(dy, weight)
    return dc.t() @ (x if mask is None else x * mask), dy.t() @ c
