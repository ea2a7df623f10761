"""The feed-forward half of a layer: gate and up, activation, down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.arch.architectures import Activation
from gguflora.kernels.activation.reference import gated
from gguflora.model.dropout import Dropout, mask_of
from gguflora.model.linear import Linear
from gguflora.model.trace import Trace, untraced
from gguflora.model.weight import Weight


@dataclass(frozen=True)
class Ffn:
    """The tensors of one layer's gated feed-forward, and its activation.

    Attributes:
        gate_up_weight: (2F, D), ffn_gate's and ffn_up's weights under each other (resident: they are views of it).
    """

    activation: Activation
    gate_up_weight: Weight
    ffn_gate: Linear
    ffn_up: Linear
    ffn_down: Linear

    def __call__(self, x: Tensor, dropout: Dropout | None = None, trace: Trace = untraced) -> Tensor:
        """X (T, D), normalised, to (T, D); `trace` is told every intermediate."""
        mask = mask_of(dropout, self.ffn_gate.name, x)
        gate, up = self.ffn_gate(x, mask), self.ffn_up(x, mask)
        act = gated(gate, up, self.activation)
        trace("ffn_gate", gate)
        trace("ffn_up", up)
        trace("ffn_act", act)
        return self.ffn_down(act, mask_of(dropout, self.ffn_down.name, act))
