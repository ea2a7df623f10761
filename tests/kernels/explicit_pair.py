"""An explicit forward and backward as one function that autograd differentiates: the same tests hold every version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[[Tensor], tuple[Tensor, ...]]
Forward = Callable[..., tuple[Tensor, Backward]]


def differentiable(forward: Forward, *inputs: Tensor) -> Tensor:
    """What `forward` gives for `inputs`, with its own backward.

    Args:
        forward: gives the result, and a function from its gradient to that of each input.
        inputs: leaves or results; others are `forward`'s own affair.
    """
    result: Tensor = _Pair.apply(forward, *inputs)  # type: ignore[no-untyped-call]
    return result


def blank(*shape: int, dtype: torch.dtype) -> Tensor:
    """A buffer to write into, full of NaN: what is read before it is written shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Forward, *inputs: Tensor) -> Tensor:
        result, ctx.back = forward(*(x.detach() for x in inputs))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.back(gradients[0].contiguous()))
