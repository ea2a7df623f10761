"""Long documents in windows: each trained token is trained once, after the tokens that stood before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.data import NOT_TRAINED, Encoded, chunk
from gguflora.errors import DataError


def document(length: int, trained: list[bool] | None = None, weight: float = 1.0) -> Encoded:
    """Tokens 0, 1, 2 ...: each says its position. Trained are all but the first, or those that are named."""
    tokens = np.arange(length, dtype=np.int32)
    mask = np.array(trained if trained is not None else [True] * length)
    labels = np.where(mask, tokens, NOT_TRAINED).astype(np.int32)
    labels[0] = NOT_TRAINED
    return Encoded(tokens, labels, weight, "book.txt")


def test_the_example_of_the_docstring():
    one, two = chunk(document(10), 6, 2)
    assert one.tokens.tolist() == [0, 1, 2, 3, 4, 5]
    assert one.labels.tolist() == [-100, 1, 2, 3, 4, 5]
    assert two.tokens.tolist() == [4, 5, 6, 7, 8, 9]
    assert two.labels.tolist() == [-100, -100, 6, 7, 8, 9]
    assert [one.source, two.source] == ["book.txt, part 1", "book.txt, part 2"]


@given(
    st.data(),
    st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))),
    st.integers(1, 150),
)
def test_every_trained_token_is_trained_once_and_in_its_context(
    data: st.DataObject, sizes: tuple[int, int], length: int
):
    max_length, overlap = sizes
    mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    whole = document(length, mask, weight=0.5)
    windows = chunk(whole, max_length, overlap)
    trained = [int(label) for window in windows for label in window.labels if label != NOT_TRAINED]
    assert trained == [int(label) for label in whole.labels if label != NOT_TRAINED]
    for window in windows:
        first = int(window.tokens[0])
        assert window.tokens.tolist() == list(range(first, first + len(window.tokens)))
        assert len(window.tokens) <= max_length
        assert window.weight == 0.5
        assert ((window.labels == window.tokens) | (window.labels == NOT_TRAINED)).all()
        positions = np.flatnonzero(window.labels != NOT_TRAINED)
        if first:
            assert positions.min() >= overlap, "a token behind a cut has its context"
        elif len(positions):
            assert positions.min() >= 1


def test_what_fits_comes_back_as_it_is_and_windows_without_a_trained_token_are_left_out():
    whole = document(6)
    assert chunk(whole, 6, 2) == [whole]
    prompted = document(20, [False] * 15 + [True] * 5)
    assert [window.tokens[0] for window in chunk(prompted, 6, 2)] == [12, 16]


def test_the_document_is_not_changed():
    whole = document(10)
    before = whole.labels.copy()
    chunk(whole, 4, 2)
    assert (whole.labels == before).all()


@pytest.mark.parametrize("overlap", [0, -1, 6, 7])
def test_an_overlap_that_would_lose_tokens_or_never_end_is_refused(overlap: int):
    with pytest.raises(DataError, match=rf"^Windows of 6 tokens can't overlap by {overlap}; give 1 to 5\.$"):
        chunk(document(10), 6, overlap)
