"""The feed-forward half of a layer: gate and up, activation, down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.kernels import Kernels
from gguflora.model.linear import Linear


@dataclass(frozen=True)
class Ffn:
    """The tensors of one layer's gated feed-forward."""

    ffn_gate: Linear
    ffn_up: Linear
    ffn_down: Linear

    def __call__(self, x: Tensor, kernels: Kernels) -> Tensor:
        """X (T, D), normalised, to (T, D)."""
        return self.ffn_down(kernels.swiglu(self.ffn_gate(x, kernels), self.ffn_up(x, kernels)), kernels)
