"""The gated activation as a pair: y = f(g) u;  dg = dy u f'(g),  du = dy f(g)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu


def forward(gate: Tensor, up: Tensor, activation: str, y: Tensor) -> None:
    """Write y (T, F) for gate and up (T, F)."""
    torch.mul(_f(gate, activation), up, out=y)


def backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str, d_gate: Tensor, d_up: Tensor, y: Tensor) -> None:
    """Write d_gate and d_up (T, F) for dy (T, F), and y once more."""
    f = _f(gate, activation)
    torch.mul(f, up, out=y)
    torch.mul(dy, f, out=d_up)
    slope = torch.ops.aten.silu_backward if activation == "silu" else _gelu_backward
    d_gate.copy_(slope(dy * up, gate))


def _f(gate: Tensor, activation: str) -> Tensor:
    return silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")


def _gelu_backward(dy: Tensor, gate: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward(dy, gate, approximate="tanh")
    return result
