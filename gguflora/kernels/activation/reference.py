"""Gated activations: SwiGLU and GeGLU (Shazeer 2020, arXiv:2002.05202), activation(gate) * up."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu, silu


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up, elementwise over (T, F); silu, or gelu_tanh (the tanh form, as llama.cpp has it)."""
    return (silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")) * up
