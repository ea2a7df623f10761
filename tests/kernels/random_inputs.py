"""Random tensors for the operations' tests: seeded, of any dtype, and never contiguous where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for one test."""
    return torch.Generator().manual_seed(seed)


def normal(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64, deviation: float = 1.0
) -> Tensor:
    """A tensor that wants a gradient, normally distributed; the draw is float64 whatever the dtype."""
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64) * deviation
    return drawn.to(dtype).requires_grad_()


def strided(generator: torch.Generator, *shape: int) -> Tensor:
    """A float64 leaf whose elements lie apart in memory: every second one of a transposed block."""
    block = torch.randn(*reversed(shape), 2, generator=generator, dtype=torch.float64)
    leaf = block[..., 0].permute(*reversed(range(len(shape)))).detach().requires_grad_()
    assert not leaf.is_contiguous()
    return leaf


def widened(*tensors: Tensor) -> list[Tensor]:
    """The same values as float64 leaves: what a dtype's own rounding is measured against."""
    return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
