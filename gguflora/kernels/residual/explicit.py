"""What a branch adds to the residual: out = h + branch, rounded to the residual's dtype alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Add = Callable[[Tensor, Tensor, Tensor], None]
"""The function below, or the compiled one."""


def add(h: Tensor, branch: Tensor, out: Tensor) -> None:
    """Write out (T, D) for h (T, D), in out's dtype, and branch (T, D), in the compute dtype."""
    torch.add(h, branch, out=out)
