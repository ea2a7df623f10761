"""A linear layer of the base and, where it is a target, its pair."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.kernels.lora_linear.reference import lora_linear
from gguflora.model.lora import LoraPair
from gguflora.model.weight import Weight, dense


@dataclass(frozen=True)
class Linear:
    """A frozen linear layer.

    Attributes:
        name: its tensor's name in the file.
        weight: (out, in), resident in the compute dtype or packed.
        bias: (out,) or None.
        pair: what is trained on it, or None.
        scale: factor of the pair's product: alpha / rank times the user's scale.
    """

    name: str
    weight: Weight
    bias: Tensor | None
    pair: LoraPair | None = None
    scale: float = 0.0

    @property
    def halves(self) -> tuple[Tensor, Tensor] | None:
        """The pair as the operations take it: (lora_a, lora_b)."""
        return (self.pair.lora_a, self.pair.lora_b) if self.pair else None

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """X (T, in) to (T, out); mask (T, in) is dropout's, on what the pair reads."""
        return lora_linear(x, dense(self.weight), self.bias, self.halves, self.scale, mask)
