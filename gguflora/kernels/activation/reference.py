"""SwiGLU (Shazeer 2020, arXiv:2002.05202): silu(gate) * up."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise over (T, F)."""
    return silu(gate) * up
