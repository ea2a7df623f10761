"""Which examples are only measured: a seeded split that never has one text on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from gguflora.data.example import Completion, Conversation, Example
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
    if not 0 <= validation_share < 1:
        raise DataError(f"The validation share is {validation_share}; give a number from 0 to below 1.")
    if validation_share == 0:
        return list(examples), []
    groups = list(_by_content(examples).values())
    if len(groups) < 2:
        raise DataError(
            f"{len(examples)} examples with {len(groups)} different texts can't be split; "
            "give a validation share of 0, or more data."
        )
    wanted = min(max(1, round(validation_share * len(examples))), len(examples) - 1)
    chosen = _choose(groups, wanted, seed)
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def duplicate_count(examples: Sequence[Example]) -> int:
    """How many examples repeat the content of an earlier one."""
    return len(examples) - len(_by_content(examples))


def overlap_count(train: Sequence[Example], validation: Sequence[Example]) -> int:
    """How many validation examples are also trained, and so measure memory instead of learning."""
    trained = _by_content(train)
    return sum(example.content in trained for example in validation)


def _by_content(examples: Sequence[Example]) -> dict[Conversation | Completion, list[int]]:
    groups: dict[Conversation | Completion, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.content, []).append(index)
    return groups


def _choose(groups: list[list[int]], wanted: int, seed: int) -> set[int]:
    """Indices of whole groups, drawn at random while they fit in `wanted`; the smallest group if none does."""
    chosen: set[int] = set()
    for number in split_order(seed, len(groups)):
        if len(chosen) + len(groups[number]) <= wanted:
            chosen.update(groups[number])
    smallest = min(groups, key=len)
    return chosen or set(smallest)
