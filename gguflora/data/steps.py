"""Which examples each step of a run trains, and where its epochs end: known before the run begins.

A step is a number of examples, or a number of tokens. By tokens, an epoch's order is followed and each step takes what
still fits; an example that does not fit waits for the next step, which begins with it. So lengths are used up that
would otherwise leave a gap at the end of each step:

>>> [step.tolist() for step in token_steps(np.array([0, 1, 2, 3, 4]), [50, 60, 30, 20, 40], 100)]
[[0, 2, 3], [1, 4]]

Both are pure functions of the seed, the lengths and the numbers asked for, so a resumed run goes on where it stopped.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.config import TrainingConfig
from gguflora.data.order import permutation, step_indices, steps_per_epoch

LOOKAHEAD = 16  # examples that may wait for the next step; by then a step is full to a part of the shortest of them

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The steps of a run.

    Attributes:
        ends: steps made when each epoch is over, rising; at least one.
        total: steps of the run.
        examples: step, from 0 -> the indices of its examples.
    """

    ends: Sequence[int]
    total: int
    examples: Callable[[int], Indices]

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that the last of `step` steps belongs to; 0 before the first."""
        return bisect_left(self.ends, step) + 1 if step else 0

    def is_end(self, step: int) -> bool:
        """Whether an epoch is over after `step` steps."""
        place = bisect_left(self.ends, step)
        return place < len(self.ends) and self.ends[place] == step


def plan_steps(lengths: Sequence[int], training: TrainingConfig) -> StepPlan:
    """The steps of a run.

    Args:
        lengths: tokens of each example, at least one example.
        training: seed, epochs, and how large a step is.
    """
    if training.batch_tokens is not None:
        return _by_tokens(lengths, training.batch_tokens, training)
    assert training.batch_size is not None
    return _by_examples(len(lengths), training.batch_size, training)


def _by_examples(n: int, batch_size: int, training: TrainingConfig) -> StepPlan:
    """The last step of an epoch may have fewer examples."""
    each = steps_per_epoch(n, batch_size)
    ends = range(each, each * training.epochs + 1, each)
    return StepPlan(ends, _total(ends, training), lambda step: step_indices(training.seed, step, n, batch_size))


def _by_tokens(lengths: Sequence[int], batch_tokens: int, training: TrainingConfig) -> StepPlan:
    """Epochs may differ in their number of steps; those behind `max_steps` are not worked out."""

    @functools.lru_cache(maxsize=2)  # the epoch under way, and the one before
    def steps_of(epoch: int) -> list[Indices]:
        return token_steps(permutation(training.seed, epoch, len(lengths)).tolist(), lengths, batch_tokens)

    ends: list[int] = []
    for epoch in range(training.epochs):
        ends.append((ends[-1] if ends else 0) + len(steps_of(epoch)))
        if training.max_steps is not None and ends[-1] >= training.max_steps:
            break

    def examples(step: int) -> Indices:
        epoch = bisect_right(ends, step)
        return steps_of(epoch)[step - (ends[epoch - 1] if epoch else 0)]

    return StepPlan(ends, _total(ends, training), examples)


def _total(ends: Sequence[int], training: TrainingConfig) -> int:
    return ends[-1] if training.max_steps is None else min(ends[-1], training.max_steps)


def token_steps(order: Iterable[int], lengths: Sequence[int], most: int) -> list[Indices]:
    """An epoch's examples in steps of at most `most` tokens.

    Args:
        order: the epoch's, each index once.
        lengths: tokens of each example.
        most: tokens in a step; a longer example is a step of its own.

    Returns:
        The indices of each step, those that waited first. Each index of `order` is in exactly one.
    """
    coming = iter(order)
    waiting: list[int] = []
    steps: list[Indices] = []
    while True:
        step, waiting = _fill(waiting, coming, lengths, most)
        if not step:
            return steps
        steps.append(np.array(step, np.int64))


def _fill(
    waited: Sequence[int], coming: Iterable[int], lengths: Sequence[int], most: int
) -> tuple[list[int], list[int]]:
    """One step, and what waits for the next: the first of what waited is always in it."""
    step: list[int] = []
    waiting: list[int] = []
    left = most
    for seen, index in enumerate(itertools.chain(waited, coming), 1):
        fits = not step or lengths[index] <= left
        (step if fits else waiting).append(index)
        left -= lengths[index] if fits else 0
        if seen >= len(waited) and (left <= 0 or len(waiting) == LOOKAHEAD):
            break
    return step, waiting
