"""A split keeps every example, has the share asked for, and never one text on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.data.catalogue import contents_of
from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.order import split_order
from gguflora.data.split import default_validation_share, overlap, repeats, train_validation_split
from gguflora.errors import DataError


def numbered(numbers: list[int]) -> list[Example]:
    return [Example.completion(f"question {number}", "answer") for number in numbers]


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda numbers: len(set(numbers)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
)
def test_every_example_is_on_one_side_and_no_text_on_both(numbers: list[int], share: float, seed: int):
    examples = numbered(numbers)
    train, validation = train_validation_split(examples, share, seed)
    assert Counter(train) + Counter(validation) == Counter(examples)
    assert train
    assert validation
    assert not {example.content for example in train} & {example.content for example in validation}
    assert overlap(contents_of(train), contents_of(validation)) == 0


def split_by_first_version(examples: list[Example], share: float, seed: int) -> set[int]:
    """Which examples were measured in the version that had the contents themselves as keys, copied from there."""
    groups: dict[Conversation | Completion, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.content, []).append(index)
    wanted = min(max(1, round(share * len(examples))), len(examples) - 1)
    of_content, chosen = list(groups.values()), set[int]()
    for number in split_order(seed, len(of_content)):
        if len(chosen) + len(of_content[number]) <= wanted:
            chosen.update(of_content[number])
    return chosen or set(min(of_content, key=len))


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda numbers: len(set(numbers)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
)
def test_the_split_is_that_of_the_first_version_so_that_its_runs_go_on(numbers: list[int], share: float, seed: int):
    examples = [replace(example, source=str(n)) for n, example in enumerate(numbered(numbers))]
    expected = split_by_first_version(examples, share, seed)
    train, validation = train_validation_split(examples, share, seed)
    assert [example.source for example in validation] == [str(n) for n in sorted(expected)]
    assert [example.source for example in train] == [str(n) for n in range(len(examples)) if n not in expected]


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_without_duplicates_the_share_is_met_exactly(n: int, share: float, seed: int):
    _, validation = train_validation_split(numbered(list(range(n))), share, seed)
    assert len(validation) == min(max(1, round(share * n)), n - 1)


def test_both_sides_keep_the_order_and_the_seed_decides():
    examples = numbered(list(range(50)))
    train, validation = train_validation_split(examples, 0.2, 1)
    assert [examples.index(example) for example in validation] == sorted(map(examples.index, validation))
    assert [examples.index(example) for example in train] == sorted(map(examples.index, train))
    assert train_validation_split(examples, 0.2, 1) == (train, validation)
    assert train_validation_split(examples, 0.2, 2) != (train, validation)


def test_the_same_text_with_another_weight_or_source_stays_on_the_same_side():
    copies = [Example.completion("a", "b", weight=weight) for weight in (1.0, 0.5, 2.0)]
    for seed in range(20):
        train, validation = train_validation_split([*copies, *numbered([1, 2, 3])], 0.5, seed)
        assert not {example.content for example in train} & {example.content for example in validation}


def test_share_zero_measures_nothing():
    examples = numbered([1, 2])
    assert train_validation_split(examples, 0, 3) == (examples, [])


@pytest.mark.parametrize("numbers", [[], [1], [1, 1, 1]])
def test_what_cannot_be_split_is_refused(numbers: list[int]):
    with pytest.raises(
        DataError, match=f"{len(numbers)} examples with .* can't be split; give a validation share of 0"
    ):
        train_validation_split(numbered(numbers), 0.5, 0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float):
    with pytest.raises(DataError, match="give a number from 0 to below 1"):
        train_validation_split(numbered([1, 2]), share, 0)


@pytest.mark.parametrize(("n", "measured"), [(1, 0), (99, 0), (100, 10), (1000, 100), (2000, 200), (7473, 200)])
def test_the_default_is_a_tenth_capped_at_200_from_100_examples_on(n: int, measured: int):
    share = default_validation_share(n)
    assert round(share * n) == measured


def test_duplicates_and_overlap_are_counted():
    assert repeats(contents_of(numbered([1, 2, 1, 1]))) == 2
    assert repeats(contents_of([])) == 0
    assert overlap(contents_of(numbered([1, 2])), contents_of(numbered([2, 2, 3]))) == 2
    assert overlap(contents_of(numbered([1, 2])), contents_of([])) == 0
