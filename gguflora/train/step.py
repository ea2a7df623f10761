"""One step: micro-batches to gradients. The loss of a step is one mean over all its trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.data import MicroBatch
from gguflora.model import Decoder, row_loss


@dataclass(frozen=True)
class StepLoss:
    """Sums over a step's trained tokens: weight * nll, weights; and how many tokens were computed."""

    nll: float
    weight: float
    tokens: int

    @property
    def mean(self) -> float:
        """The loss of the step."""
        return self.nll / self.weight


def accumulate(decoder: Decoder, micro_batches: Sequence[MicroBatch]) -> StepLoss:
    """Add the step's gradients to the decoder's pairs.

    Each micro-batch's loss is divided by the weight of the whole step, so the gradient is the same however the step
    is cut into micro-batches.
    """
    total = sum(trained_weight(micro_batch) for micro_batch in micro_batches)
    nll, tokens = 0.0, 0
    for micro_batch in micro_batches:
        loss, _ = micro_batch_loss(decoder, micro_batch)
        (loss / total).backward()  # type: ignore[no-untyped-call]
        nll += float(loss.detach())
        tokens += len(micro_batch.tokens)
    return StepLoss(nll, total, tokens)


def micro_batch_loss(decoder: Decoder, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Weighted sum of the nll of a micro-batch (with gradient), and each trained token's nll (without)."""
    return row_loss(
        decoder,
        torch.from_numpy(micro_batch.tokens),
        torch.from_numpy(micro_batch.positions),
        micro_batch.document_starts.tolist(),
        torch.from_numpy(micro_batch.labels),
        torch.from_numpy(micro_batch.weights),
    )


def trained_weight(micro_batch: MicroBatch) -> float:
    """Sum of the weights of a micro-batch's trained tokens."""
    return float(micro_batch.weights[micro_batch.labels >= 0].sum(dtype="float64"))
