"""Which examples each step of a run trains, and where its epochs end: known before the run begins.

A step is a number of examples, or a number of tokens. By tokens, each step follows the epoch's order until what is left
of it can be filled from the next few examples, and takes those that fill it best. The others wait for the next step,
which begins with the first of them:

>>> [step.tolist() for step in token_steps([0, 1, 2, 3, 4], [50, 60, 30, 20, 40], 100)]
[[0, 2, 3], [1, 4]]

Both are pure functions of the seed, the lengths and the numbers asked for, so a resumed run goes on where it stopped.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.config import TrainingConfig
from gguflora.data.order import permutation, step_indices, steps_per_epoch
from gguflora.data.packing import filling

WINDOW = 16  # examples that the end of a step is chosen from: enough for almost any number of tokens
_SLACK = 128  # a step leaves this part of its tokens free, or its rows would all have to come out even

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
        The indices of each step. Each index of `order` is in exactly one.
    """
    coming = iter(order)
    waiting = list(itertools.islice(coming, 1))
    steps: list[Indices] = []
    while waiting:
        step, waiting = _fill(waiting, coming, lengths, most)
        steps.append(np.array(step, np.int64))
        waiting = waiting or list(itertools.islice(coming, 1))
    return steps


def _fill(
    waited: Sequence[int], coming: Iterator[int], lengths: Sequence[int], most: int
) -> tuple[list[int], list[int]]:
    """One step, and what waits for the next: the first of what waited is always in it."""
    step, waiting = [waited[0]], list(waited[1:])
    left = most - lengths[step[0]]
    while True:
        waiting += itertools.islice(coming, WINDOW - len(waiting))
        if not waiting or sum(lengths[index] for index in waiting) > left:
            break
        step.append(waiting.pop(0))
        left -= lengths[step[-1]]
    chosen = _chosen([lengths[index] for index in waiting], left, most // _SLACK)
    step += [waiting[place] for place in chosen]
    return step, [index for place, index in enumerate(waiting) if place not in chosen]


def _chosen(lengths: Sequence[int], left: int, slack: int) -> list[int]:
    """Places of what fills all but `slack` of what is left, or all of it where only that fills it well: with windows
    of a document, which are as long as a row.
    """
    some, all_of_it = filling(lengths, left - slack), filling(lengths, left)
    gain = sum(lengths[place] for place in all_of_it) - sum(lengths[place] for place in some)
    return all_of_it if gain > slack else some
