"""A packed row as the model takes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.model.dropout import Dropout


@dataclass(frozen=True)
class PackedRow:
    """Whole documents one after the other, T tokens in all, without padding.

    Attributes:
        tokens: (T,) ids.
        positions: (T,) position of each token in its document.
        document_starts: where each document begins, and T at the end.
        labels: (T,) the token to be predicted *at* each position from those before it, -100 where none is trained.
            A document's first position is never labelled.
        weights: (T,) factor of each position's nll.
        dropout: masks of what the pairs read; None without dropout.
    """

    tokens: Tensor
    positions: Tensor
    document_starts: list[int]
    labels: Tensor
    weights: Tensor
    dropout: Dropout | None = None

    @property
    def labelled(self) -> Tensor:
        """The labelled positions (n,), in their order."""
        return (self.labels >= 0).nonzero()[:, 0]
