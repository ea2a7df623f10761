"""Out of memory in a step: make room and do the step again. Nothing of the failed try is kept.

Order: shorter rows, until every row is one example; then layers computed again in the backward; then an error that says
what was needed. Rows and recomputation change no loss, and no dropout mask. A measurement that runs out is done again
with shorter rows as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gguflora.data import best_fit
from gguflora.errors import MachineError
from gguflora.events import Halved
from gguflora.model import Workspace
from gguflora.train.state import State, named_parameters

_REFUSED = (
    "can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "could not create a primitive",  # oneDNN's, whose buffers torch does not allocate; it keeps the cause to itself
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, torch's or oneDNN's on a CPU (a plain RuntimeError there), or a GPU's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED)


def make_room(state: State, work: Workspace | None, lengths: Sequence[int], error: BaseException) -> Halved:
    """Drop what the failed step left, and change `state` so that the next try needs less.

    Args:
        state: of the step before; its row limit or its recompute is changed.
        work: the buffers, which are given back; None for the reference.
        lengths: tokens of each of the step's examples.
        error: what failed.

    Raises:
        MachineError: nothing is left to shorten.
    """
    for _, parameter in named_parameters(state.pairs):
        parameter.grad = None
    shorter = shorter_rows(lengths, state.micro_batch_tokens)
    if shorter is not None:
        state.micro_batch_tokens = shorter
    elif work is not None and not state.recompute:
        state.recompute = True
    else:
        raise nothing_left(lengths, f"in step {state.step + 1}", error) from error
    if work is not None:
        work.release(state.micro_batch_tokens)
    return Halved(state.step, state.micro_batch_tokens, state.recompute, _reason(error))


def shorter_rows(lengths: Sequence[int], limit: int) -> int | None:
    """The largest half, quarter, ... of `limit` tokens that makes more rows of examples of `lengths` tokens.

    None if every row is one example already.
    """
    rows = len(best_fit(lengths, limit))
    if rows == len(lengths):
        return None
    while len(best_fit(lengths, limit)) <= rows:  # a limit that changes nothing is no help
        limit = max(1, limit // 2)
    return limit


def nothing_left(lengths: Sequence[int], where: str, error: BaseException) -> MachineError:
    """What to tell when examples of `lengths` tokens, each computed alone, are too much."""
    return MachineError(
        f"memory ran out {where} on an example of {max(lengths)} tokens computed alone ({_reason(error)}); "
        "use a smaller --max-length or --weights packed, or a machine with more memory."
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
