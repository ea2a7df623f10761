"""Which attention runs: flash.py's where processor, dtype and head are what its tiles are for, else explicit.py's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gguflora.kernels.attention import explicit
from gguflora.kernels.attention.softmax import TORCH as TORCH_SOFTMAX
from gguflora.kernels.attention.softmax import Softmax

QKV = tuple[Tensor, Tensor, Tensor]
"""q (T, H, h), k and v (T, K, h)."""


class Flash(Protocol):
    """flash.py."""

    def suits(self, q: Tensor) -> bool:
        """As suits there."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float, window: int | None, out: Tensor
    ) -> Tensor:
        """As forward there."""

    def backward(
        self,
        d_out: Tensor,
        out: Tensor,
        lse: Tensor,
        qkv: QKV,
        document_starts: list[int],
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As backward there."""


@dataclass(frozen=True)
class Attention:
    """Attention over packed rows.

    Attributes:
        softmax: what explicit.py's attention does between its products.
        flash: the module; None where it can't run.
    """

    softmax: Softmax
    flash: Flash | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float, window: int | None, out: Tensor
    ) -> Tensor | None:
        """Write out (T, H, h) for q (T, H, h), k and v (T, K, h); gives what the backward wants back, if anything."""
        if self.flash is not None and self.flash.suits(q):
            return self.flash.forward(q, k, v, document_starts, scale, window, out)
        explicit.forward(q, k, v, document_starts, scale, window, out, self.softmax)
        return None

    def backward(
        self,
        d_out: Tensor,
        out: Tensor,
        lse: Tensor | None,
        qkv: QKV,
        document_starts: list[int],
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq (T, H, h), dk and dv (T, K, h) for d_out (T, H, h), the forward's out, and what it gave."""
        if self.flash is not None and lse is not None:
            return self.flash.backward(d_out, out, lse, qkv, document_starts, scale, window)
        return explicit.backward(d_out, *qkv, document_starts, scale, window, self.softmax)


TORCH = Attention(TORCH_SOFTMAX)
