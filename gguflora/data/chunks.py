"""A document that is longer than the model is to see becomes windows, each of its tokens trained in exactly one.

    document   0 1 2 3 4 5 6 7 8 9        max_length 6, overlap 2
    window 1   0 1 2 3 4 5
    window 2           4 5 6 7 8 9        4 and 5 are context: seen again, not trained again

A token is predicted from those before it, so the first of a window can't be trained: windows overlap by one at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.errors import DataError


def chunk(encoded: Encoded, max_length: int, overlap: int) -> list[Encoded]:
    """Windows of at most max_length tokens that train every trained token of `encoded` once, in order.

    A window without a trained token of its own is left out. What fits in one window comes back as it is.

    Args:
        encoded: a document.
        max_length: most tokens of a window.
        overlap: tokens at the start of each window but the first that are context only, from 1 to below max_length.

    Raises:
        DataError: the overlap is out of range.
    """
    if not 1 <= overlap < max_length:
        raise DataError(f"Windows of {max_length} tokens can't overlap by {overlap}; give 1 to {max_length - 1}.")
    if len(encoded.tokens) <= max_length:
        return [encoded]
    return list(_windows(encoded, max_length, overlap))


def _windows(encoded: Encoded, max_length: int, overlap: int) -> Iterator[Encoded]:
    for number, start in enumerate(range(0, len(encoded.tokens) - overlap, max_length - overlap), 1):
        window = slice(start, start + max_length)
        labels = encoded.labels[window].copy()
        if start:
            labels[:overlap] = NOT_TRAINED
        if (labels != NOT_TRAINED).any():
            yield replace(
                encoded, tokens=encoded.tokens[window], labels=labels, source=f"{encoded.source}, part {number}"
            )
