"""Which examples are only measured: a seeded split that never has one text on both sides.

It is decided from the ids of the contents (catalogue.py), so that the examples themselves need not be in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguflora.data.catalogue import Ids, contents_of
from gguflora.data.example import Example
from gguflora.data.order import split_order
from gguflora.errors import DataError

_DEFAULT_SHARE = 0.1
_DEFAULT_MOST = 200  # examples: more make the figure little better and each measurement longer
_DEFAULT_FROM = 100  # examples: a tenth of fewer says too little about them


def default_validation_share(n: int) -> float:
    """The share of n examples to measure on when the user names none: 10 %, at most 200; 0 below 100 examples."""
    return min(_DEFAULT_SHARE, _DEFAULT_MOST / n) if n >= _DEFAULT_FROM else 0.0


def train_validation_split(
    examples: Sequence[Example], validation_share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples to train and examples to measure on, each in the order given.

    Examples of equal content stay together, so the second list may miss the share by a few; it has at least one
    unless the share is 0.

    Args:
        examples: all of them.
        validation_share: share of the examples in the second list, from 0 to below 1.
        seed: decides which; 0 or more.

    Raises:
        DataError: the share is out of range, or there are no two different examples to split.
    """
    measured = choose_validation(contents_of(examples), validation_share, seed)
    train = [example for example, chosen in zip(examples, measured, strict=True) if not chosen]
    return train, [example for example, chosen in zip(examples, measured, strict=True) if chosen]


def choose_validation(contents: Ids, validation_share: float, seed: int) -> npt.NDArray[np.bool_]:
    """As `train_validation_split`, from ids of the contents: (n,) whether each example is only measured.

    Raises:
        DataError: the share is out of range, or there are no two different examples to split.
    """
    if not 0 <= validation_share < 1:
        raise DataError(f"The validation share is {validation_share}; give a number from 0 to below 1.")
    if validation_share == 0:
        return np.zeros(len(contents), np.bool_)
    groups = _groups(contents)
    if len(contents) == 0 or groups.max() == 0:
        raise DataError(
            f"{len(contents)} examples with {min(1, len(contents))} different texts can't be split; "
            "give a validation share of 0, or more data."
        )
    wanted = min(max(1, round(validation_share * len(contents))), len(contents) - 1)
    return np.isin(groups, _choose(np.bincount(groups), wanted, seed))


def repeats(contents: Ids) -> int:
    """How many examples repeat the content of an earlier one.

    Args:
        contents: (n, 2) of the examples.
    """
    return len(contents) - int(_groups(contents).max(initial=-1)) - 1


def overlap(train: Ids, validation: Ids) -> int:
    """How many validation examples are also trained, and so measure memory instead of learning.

    Args:
        train: (n, 2) contents of what is trained.
        validation: (m, 2) contents of what is measured.
    """
    groups = _groups(np.concatenate([train, validation]))
    return int(np.isin(groups[len(train) :], groups[: len(train)]).sum())


def _groups(contents: Ids) -> npt.NDArray[np.int64]:
    """(n,) the number of each example's group of equal contents; groups are numbered as they first appear."""
    order = np.lexsort((contents[:, 1], contents[:, 0]))  # stable: the first of a group comes first
    ordered = contents[order]
    begins = np.ones(len(contents), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rank = np.empty(int(begins.sum()), np.int64)
    rank[np.argsort(order[begins])] = np.arange(len(rank))
    groups = np.empty(len(contents), np.int64)
    groups[order] = rank[np.cumsum(begins) - 1]
    return groups


def _choose(sizes: npt.NDArray[np.int64], wanted: int, seed: int) -> list[int]:
    """Groups, drawn at random while they fit in `wanted` examples; the smallest one if none does."""
    room, chosen = wanted, []
    of_group = sizes.tolist()
    for group in split_order(seed, len(of_group)).tolist():
        if of_group[group] <= room:
            chosen.append(group)
            room -= of_group[group]
            if room == 0:
                break
    return chosen or [int(sizes.argmin())]
