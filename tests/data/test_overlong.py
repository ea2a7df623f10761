"""A longer example is left out, cut or split; no cut teaches a false end, and no label is given twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.config import Overlong
from gguflora.data.encoded import Encoded
from gguflora.data.overlong import fit

BOS = 7


def encoded(tokens: list[int], trained: set[int]) -> Encoded:
    labels = [token if position in trained else -100 for position, token in enumerate(tokens)]
    return Encoded(np.array(tokens, np.int32), np.array(labels, np.int32), 0.5, "d.jsonl:3")


def shown(pieces: tuple[Encoded, ...]) -> list[tuple[list[int], list[int]]]:
    return [(piece.tokens.tolist(), piece.labels.tolist()) for piece in pieces]


NINE = encoded([10, 11, 12, 13, 14, 15, 16, 17, 18], {4, 5, 6, 7})
"""The answer is 14 to 17, of which 17 ends it; a newline follows."""

CASES: dict[tuple[Overlong, int], list[tuple[list[int], list[int]]]] = {
    ("drop", 5): [],
    ("truncate-left", 5): [([13, 14, 15, 16, 17], [-100, 14, 15, 16, 17])],
    ("truncate-left", 3): [([15, 16, 17], [-100, 16, 17])],
    ("truncate-left", 8): [([10, 11, 12, 13, 14, 15, 16, 17], [-100, -100, -100, -100, 14, 15, 16, 17])],
    ("truncate-right", 6): [([10, 11, 12, 13, 14, 15], [-100, -100, -100, -100, 14, 15])],
    ("truncate-right", 4): [],
    ("split", 5): [
        ([10, 11, 12, 13, 14], [-100, -100, -100, -100, 14]),
        ([14, 15, 16, 17, 18], [-100, 15, 16, 17, -100]),
    ],
    ("split", 4): [([13, 14, 15, 16], [-100, 14, 15, 16]), ([16, 17, 18], [-100, 17, -100])],
}


@pytest.mark.parametrize(("overlong", "max_length"), CASES)
def test_what_is_left_of_a_longer_example(overlong: Overlong, max_length: int):
    """By hand. The windows of 4 begin at 10, 13 and 16; in the first nothing is trained, so it is not there."""
    assert shown(fit(NINE, max_length, overlong, 0)) == CASES[overlong, max_length]


@pytest.mark.parametrize("overlong", ["drop", "truncate-left", "truncate-right", "split"])
def test_an_example_that_fits_stays_itself(overlong: Overlong):
    assert fit(NINE, 9, overlong, 0) == (NINE,)


def test_bos_stays_before_every_piece_and_is_never_trained():
    example = encoded([BOS, 11, 12, 13, 14, 15], {2, 3, 4, 5})
    assert shown(fit(example, 4, "truncate-left", 1)) == [([BOS, 13, 14, 15], [-100, -100, 14, 15])]
    assert shown(fit(example, 4, "truncate-right", 1)) == [([BOS, 11, 12, 13], [-100, -100, 12, 13])]
    assert shown(fit(example, 4, "split", 1)) == [
        ([BOS, 11, 12, 13], [-100, -100, 12, 13]),
        ([BOS, 13, 14, 15], [-100, -100, 14, 15]),
    ]


def test_pieces_keep_weight_and_name_their_source():
    pieces = fit(NINE, 5, "split", 0)
    assert [(piece.weight, piece.source) for piece in pieces] == [
        (0.5, "d.jsonl:3, part 1"),
        (0.5, "d.jsonl:3, part 2"),
    ]


def test_windows_with_more_context_by_hand():
    """Of 5 tokens, 3 were in the window before; with BOS in front, 2 of 5 are new where 2 are context."""
    assert shown(fit(NINE, 5, "split", 0, 3)) == [
        ([10, 11, 12, 13, 14], [-100, -100, -100, -100, 14]),
        ([12, 13, 14, 15, 16], [-100, -100, -100, 15, 16]),
        ([14, 15, 16, 17, 18], [-100, -100, -100, 17, -100]),
    ]
    example = encoded([BOS, 11, 12, 13, 14, 15, 16], {1, 2, 3, 4, 5, 6})
    assert shown(fit(example, 5, "split", 1, 2)) == [
        ([BOS, 11, 12, 13, 14], [-100, 11, 12, 13, 14]),
        ([BOS, 13, 14, 15, 16], [-100, -100, -100, 15, 16]),
    ]


@given(st.integers(3, 60), st.data(), st.integers(2, 12), st.booleans())
def test_windows_train_each_position_exactly_once_behind_the_tokens_before_it(
    length: int, data: st.DataObject, max_length: int, bos: bool
):
    """Tokens tell their positions, so the labels of all windows together are those of the example, none twice.

    What is trained stands behind `overlap` tokens at least, each behind the one before it, or behind all there are.
    """
    overlap = data.draw(st.integers(1, max_length - 1))
    trained = data.draw(st.sets(st.integers(1, length - 1), min_size=1))
    example = encoded(list(range(length)), trained)
    pieces = fit(example, max_length, "split", int(bos), overlap)
    assert all(len(piece.tokens) <= max_length for piece in pieces)
    labels = [label for piece in pieces for label in piece.labels.tolist() if label != -100]
    assert sorted(labels) == sorted(trained)
    for piece in pieces:
        for place, label in enumerate(piece.labels.tolist()):
            if label != -100:
                context = piece.tokens[max(0, place - overlap) : place].tolist()
                assert context[-min(overlap, label) :] == list(range(max(0, label - overlap), label))


@given(st.integers(3, 40), st.data(), st.integers(3, 12), st.booleans())
def test_cut_on_the_left_the_last_answer_keeps_its_end_and_on_the_right_nothing_new_ends(
    length: int, data: st.DataObject, max_length: int, bos: bool
):
    trained = data.draw(st.sets(st.integers(2, length - 1), min_size=1))
    example = encoded(list(range(length)), trained)
    [left] = fit(example, max_length, "truncate-left", int(bos))
    assert left.labels.max() == max(trained)
    for piece in fit(example, max_length, "truncate-right", int(bos)):
        kept = len(piece.tokens)
        assert piece.tokens.tolist() == list(range(kept))
        assert piece.labels.tolist() == example.labels.tolist()[:kept]
