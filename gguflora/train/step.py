"""One step: micro-batches to gradients. The loss of a step is one mean over all its trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.data import MicroBatch
from gguflora.model import Decoder, Dropout, PackedRow, Workspace, row_gradients, row_loss, row_nll


@dataclass(frozen=True)
class Method:
    """How gradients are computed.

    Attributes:
        work: buffers of the explicit forward and backward; None runs the reference, plain autograd.
        recompute: layers keep their input alone and run again in the backward (not for the reference).
    """

    work: Workspace | None
    recompute: bool = False


@dataclass(frozen=True)
class DropoutKey:
    """What a step's dropout masks depend on, besides example and module."""

    rate: float
    seed: int
    step: int


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


def accumulate(
    decoder: Decoder, micro_batches: Sequence[MicroBatch], method: Method, dropout: DropoutKey | None = None
) -> StepLoss:
    """Add the step's gradients to the decoder's pairs.

    Each micro-batch's loss is divided by the weight of the whole step, so the gradient is the same however the step
    is cut into micro-batches.
    """
    total = sum(trained_weight(micro_batch) for micro_batch in micro_batches)
    nll, tokens = 0.0, 0
    for micro_batch in micro_batches:
        nll += _row_gradients(decoder, packed_row(micro_batch, dropout), 1 / total, method)
        tokens += len(micro_batch.tokens)
    return StepLoss(nll, total, tokens)


def micro_batch_nll(decoder: Decoder, micro_batch: MicroBatch, method: Method) -> Tensor:
    """The nll (n,) of a micro-batch's trained tokens, in their order, without gradients or dropout."""
    row = packed_row(micro_batch)
    with torch.no_grad():
        if method.work is not None:
            return row_nll(decoder, row, method.work)
        _, nll = row_loss(decoder, row)
        return nll


def packed_row(micro_batch: MicroBatch, dropout: DropoutKey | None = None) -> PackedRow:
    """A micro-batch as tensors that share its memory: the one place where arrays become tensors."""
    starts = micro_batch.document_starts.tolist()
    masks = None
    if dropout is not None and dropout.rate > 0:
        examples = tuple(micro_batch.examples.tolist())
        masks = Dropout(dropout.rate, dropout.seed, dropout.step, examples, tuple(starts))
    return PackedRow(
        tokens=torch.from_numpy(micro_batch.tokens),
        positions=torch.from_numpy(micro_batch.positions),
        document_starts=starts,
        labels=torch.from_numpy(micro_batch.labels),
        weights=torch.from_numpy(micro_batch.weights),
        dropout=masks,
    )


def trained_weight(micro_batch: MicroBatch) -> float:
    """Sum of the weights of a micro-batch's trained tokens."""
    return float(micro_batch.weights[micro_batch.labels >= 0].sum(dtype="float64"))


def _row_gradients(decoder: Decoder, row: PackedRow, factor: float, method: Method) -> float:
    """Add the gradients of factor * loss of a row to the pairs; gives the row's loss, sum(weights * nll)."""
    if method.work is not None:
        loss, _ = row_gradients(decoder, row, factor, method.work, method.recompute)
        return loss
    loss_tensor, _ = row_loss(decoder, row)
    (loss_tensor * factor).backward()  # type: ignore[no-untyped-call]
    return float(loss_tensor.detach())
