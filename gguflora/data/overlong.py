"""What becomes of an example that is longer than allowed: left out, cut, or split into windows.

No cut teaches a false end: what is cut off takes its labels with it. The first token of a cut example is never
trained, as in every example, and the token that the tokenizer puts before every text (BOS) stays before each piece.

    tokens   0 1 2 3 4 5 6 7 8     of which 5 6 7 are trained, and 5 fit
    truncate-left      3 4 5 6 7   what follows the last trained token goes first
    truncate-right     0 1 2 3 4   nothing trained is left: the example is left out
    split              0 1 2 3 4 | 4 5 6 7 8   a window begins with the last token of the one before, as context
    split, overlap 3   0 1 2 3 4 | 2 3 4 5 6 | 4 5 6 7 8   or with more of them; what is context is not trained again
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gguflora.config import Overlong
from gguflora.data.encoded import NOT_TRAINED, Encoded


def fit(encoded: Encoded, max_length: int, overlong: Overlong, opening: int, overlap: int = 1) -> tuple[Encoded, ...]:
    """The pieces of an example that are trained in its place; itself, if it is short enough.

    Pieces in which nothing is trained are left out, so there may be none.

    Args:
        encoded: the example.
        max_length: most tokens of a piece, at least 2.
        overlong: what to do with a longer one.
        opening: tokens at the start that each piece begins with (BOS): 0 or 1; none where they would leave no room.
        overlap: tokens that a window has in common with the one before it, from 1 to max_length - 1.
    """
    if len(encoded.tokens) <= max_length:
        return (encoded,)
    opening = opening if max_length > opening + overlap else 0  # a window needs a token besides its context
    room = max_length - opening
    match overlong:
        case "drop":
            pieces: list[Encoded] = []
        case "truncate-right":
            pieces = [_piece(encoded, opening, opening, max_length)]
        case "truncate-left":
            end = max(int(np.flatnonzero(encoded.labels != NOT_TRAINED)[-1]) + 1, max_length)
            pieces = [_piece(encoded, opening, end - room, end)]
        case "split":
            pieces = list(_windows(encoded, opening, room, overlap))
    return tuple(piece for piece in pieces if (piece.labels != NOT_TRAINED).any())


def _windows(encoded: Encoded, opening: int, room: int, overlap: int) -> Iterator[Encoded]:
    """Every position is in one window with its label; in those that follow, it is context at most."""
    length, start, number = len(encoded.tokens), opening, 1
    while True:
        end = min(start + room, length)
        piece = _piece(encoded, opening, start, end, overlap)
        yield replace(piece, source=f"{encoded.source}, part {number}")
        if end == length:
            return
        start, number = end - overlap, number + 1


def _piece(encoded: Encoded, opening: int, start: int, end: int, context: int = 1) -> Encoded:
    """Tokens from start to end behind the opening; the first of them are context where something stood before them."""
    tokens = np.concatenate([encoded.tokens[:opening], encoded.tokens[start:end]])
    labels = np.concatenate([encoded.labels[:opening], encoded.labels[start:end]])
    if start > opening:
        labels[opening : opening + context] = NOT_TRAINED
    labels[0] = NOT_TRAINED
    return replace(encoded, tokens=tokens, labels=labels)
