"""Packing loses no token, mixes no documents, wastes little, and is the same each time."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.data import packing
from gguflora.data.encoded import Encoded
from gguflora.data.packing import MicroBatch, best_fit, fewest, fullest, pack


def encoded(number: int, length: int) -> Encoded:
    """An example whose every token tells which example and which position it is."""
    tokens = np.arange(length, dtype=np.int32) + 1000 * number
    labels = tokens.copy()
    labels[0] = -100
    return Encoded(tokens, labels, weight=0.5 + number, source=str(number))


def documents(row: MicroBatch) -> list[slice]:
    starts = row.document_starts.tolist()
    return [slice(start, end) for start, end in itertools.pairwise(starts)]


def fewest_rows(lengths: list[int], room: int) -> int:
    """Least possible rows, by trying every way to lay things into rows."""

    def place(index: int, rows: list[int], best: int) -> int:
        if len(rows) >= best:
            return best
        if index == len(lengths):
            return len(rows)
        for row in range(len(rows)):
            if rows[row] + lengths[index] <= room:
                filled = [*rows[:row], rows[row] + lengths[index], *rows[row + 1 :]]
                best = place(index + 1, filled, best)
        return place(index + 1, [*rows, lengths[index]], best)

    return place(0, [], len(lengths) + 1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 40))
def test_each_example_is_in_exactly_one_row_whole_and_unchanged(lengths: list[int], room: int):
    examples = [encoded(number, length) for number, length in enumerate(lengths)]
    seen = []
    for row in pack(examples, room):
        assert len(row.tokens) <= room or len(documents(row)) == 1
        for document in documents(row):
            number = int(row.tokens[document][0]) // 1000
            seen.append(number)
            assert row.tokens[document].tolist() == examples[number].tokens.tolist()
            assert row.labels[document].tolist() == examples[number].labels.tolist()
            assert row.positions[document].tolist() == list(range(lengths[number]))
            assert set(row.weights[document].tolist()) == {0.5 + number}
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 12))
@settings(deadline=None)
def test_rows_are_at_most_one_more_than_the_least_possible(lengths: list[int], room: int):
    assert len(best_fit(lengths, room)) <= fewest_rows(lengths, room) + 1


def test_best_fit_decreasing_by_hand():
    """Room 10: 7 opens a row, 6 another; 4 fits only beside 6, 3 only beside 7: both rows are full."""
    assert best_fit([3, 7, 4, 6], 10) == [[0, 1], [2, 3]]
    # 8 and 5 open rows; 2 goes to the fuller one that holds it (8), not to the emptier.
    assert best_fit([5, 8, 2], 10) == [[1, 2], [0]]
    # Longer than the room: alone, and nothing joins it.
    assert best_fit([1, 25, 1], 10) == [[1], [0, 2]]
    assert best_fit([], 10) == []


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 40))
def test_fullest_rows_hold_everything_once_and_never_too_much(lengths: list[int], room: int):
    rows = fullest(lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= room for row in rows)
    assert all(row == sorted(row) for row in rows)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_the_first_of_the_fullest_rows_could_not_be_fuller(lengths: list[int], room: int):
    """Held against every choice that has the longest in it."""
    [first, *_] = fullest(lengths, room)
    longest = lengths.index(max(lengths))
    others = [length for index, length in enumerate(lengths) if index != longest]
    sums = {0}
    for length in others:
        sums |= {length + other for other in sums}
    expected = max(
        (lengths[longest] + other for other in sums if lengths[longest] + other <= room), default=max(lengths)
    )
    assert sum(lengths[index] for index in first) == expected


def test_fullest_saves_a_row_by_hand():
    """Room 12. Best-fit decreasing lays 7 5, 6 4, 4 4 3 and 3; 7 5, 6 3 3 and 4 4 4 are full."""
    lengths = [7, 6, 5, 4, 4, 4, 3, 3]
    assert len(best_fit(lengths, 12)) == 4
    assert fullest(lengths, 12) == fewest(lengths, 12) == [[0, 2], [1, 6, 7], [3, 4, 5]]
    assert fewest([3, 7, 4, 6], 10) == best_fit([3, 7, 4, 6], 10)
    assert len(pack([encoded(number, length) for number, length in enumerate(lengths)], 12, tight=True)) == 3


def test_equal_lengths_keep_their_order_so_that_runs_repeat():
    assert best_fit([4, 4, 4, 4, 4], 8) == [[0, 1], [2, 3], [4]]


def test_types_are_those_that_the_model_takes():
    [row] = pack([encoded(1, 3), encoded(2, 2)], 8)
    types = [row.tokens.dtype, row.labels.dtype, row.weights.dtype, row.positions.dtype, row.document_starts.dtype]
    assert types == [np.int64, np.int64, np.float32, np.int64, np.int64]
    assert row.document_starts.tolist() == [0, 3, 5]


def test_a_hundred_thousand_examples_pack_in_seconds():
    """best_fit bisects the rows; a scan over all of them would take minutes here."""
    lengths = (np.arange(100_000) * 7919 % 2000 + 1).tolist()
    rows = best_fit(lengths, 4096)
    assert len(rows) <= 1.01 * sum(lengths) / 4096


def test_the_worked_example_is_true():
    results = doctest.testmod(packing)
    assert (results.failed, results.attempted) == (0, 8)
