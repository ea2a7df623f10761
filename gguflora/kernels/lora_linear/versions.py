"""Who computes linear layers with their pairs: explicit.py by a library's products, tiled.py by tiles."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gguflora.kernels.lora_linear.explicit import PairDelta, StackedPairs


class LoraLinear(Protocol):
    """explicit.py and tiled.py."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pairs: StackedPairs | None,
        y: Tensor,
        c: Tensor | None,
        mask: Tensor | None = None,
    ) -> None:
        """As forward of both files."""

    def backward(
        self,
        dy: Tensor,
        c: Tensor | None,
        weight: Tensor,
        pairs: StackedPairs | None,
        dx: Tensor,
        mask: Tensor | None = None,
    ) -> PairDelta | None:
        """As backward of both files."""

    def a_gradient(self, delta: PairDelta, x: Tensor) -> Tensor:
        """As a_gradient of both files."""
