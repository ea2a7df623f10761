"""Linear layers that share an input, with their pairs, as a pair of forward and backward.

The layers' weights lie under each other in W (O, in), so x is read once. A (R, in) stacks the lora_a of their pairs;
each lora_b has its layer's rows of y and its pair's columns of c. For these rows and columns:

    y  = x W^T + bias + c B^T              c = s (m x) A^T     m is dropout's mask, 1 without
    dx = dy W + m (dc A)                   dc = s dy B
    dA = dc^T (m x)                        dB = dy^T c

The pairs' product is written first and the base's added to it, which the matrix product does in its accumulators: the
sum is rounded once. The other way round, what a young pair adds is less than half a unit in the last place of a
bfloat16 x W^T, and rounding takes all of it away (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A pair's place among the layers that share an input.

    Attributes:
        b: (o, r), the pair's lora_b in the compute dtype.
        rows: of the layer's o outputs among all; columns: of the pair's r ranks among all.
    """

    b: Tensor
    rows: slice
    columns: slice


@dataclass(frozen=True)
class StackedPairs:
    """Pairs of layers that share an input, in the compute dtype.

    Attributes:
        a: (R, in).
        blocks: one for each pair.
        scale: alpha / rank, times the user's scale.
    """

    a: Tensor
    blocks: tuple[Block, ...]
    scale: float


@dataclass(frozen=True)
class PairDelta:
    """What a backward gives of the pairs' gradients.

    Attributes:
        dc: (T, R), from which `a_gradient` follows once x is there.
        db: (o, r), the gradient of lora_b, for each block.
        mask: (T, in), dropout's, if any.
    """

    dc: Tensor
    db: tuple[Tensor, ...]
    mask: Tensor | None


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
        torch.mm(_masked(x, mask), pairs.a.t(), out=c).mul_(pairs.scale)
        if sum(len(block.b) for block in pairs.blocks) < len(weight):
            y.zero_()  # the rows of layers without a pair
        for block in pairs.blocks:
            torch.mm(c[:, block.columns], block.b.t(), out=y[:, block.rows])
        y.addmm_(x, weight.t())
    else:
        torch.mm(x, weight.t(), out=y)
    if bias is not None:
        y += bias


def backward(
    dy: Tensor, c: Tensor | None, weight: Tensor, pairs: StackedPairs | None, dx: Tensor, mask: Tensor | None = None
) -> PairDelta | None:
    """Write dx (T, in) for dy (T, O) and the forward's c; gives what the pairs' gradients need, None without pairs."""
    if pairs is None or c is None:
        torch.mm(dy, weight, out=dx)
        return None
    dc = dy.new_empty(len(dy), len(pairs.a))
    db = []
    for block in pairs.blocks:  # all that reads dy here stands together: it is the largest thing in sight
        rows = dy[:, block.rows]
        torch.mm(rows, block.b, out=dc[:, block.columns])
        db.append(rows.t() @ c[:, block.columns])
    dc.mul_(pairs.scale)
    torch.mm(dc, pairs.a, out=dx)
    if mask is not None:
        dx *= mask
    dx.addmm_(dy, weight)
    return PairDelta(dc, tuple(db), mask)


def a_gradient(delta: PairDelta, x: Tensor) -> Tensor:
    """dA (R, in) for the input x (T, in)."""
    return delta.dc.t() @ _masked(x, delta.mask)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
