"""Examples of one step laid into rows without padding: the micro-batches that the model sees.

>>> from gguflora.data.encoded import Encoded
>>> import numpy as np
>>> def encoded(tokens, labels):
...     return Encoded(np.array(tokens, np.int32), np.array(labels, np.int32), 1.0, "")
>>> [row] = pack([encoded([1, 7, 8], [-100, 7, 8]), encoded([1, 9], [-100, 9])], micro_batch_tokens=8)
>>> row.tokens.tolist()
[1, 7, 8, 1, 9]
>>> row.labels.tolist()
[-100, 7, 8, -100, 9]
>>> row.positions.tolist()
[0, 1, 2, 0, 1]
>>> row.document_starts.tolist()
[0, 3, 5]
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.data.encoded import Encoded
from gguflora.data.store import lengths_of


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One packed row of T tokens. Tokens attend within their own document alone.

    Attributes:
        tokens: (T,)
        labels: (T,) the token itself where it is trained, -100 elsewhere; not shifted. A document's first is -100.
        weights: (T,) the weight of the example that each token is of.
        positions: (T,) from 0 in each document.
        document_starts: (documents + 1,) index of each document's first token, then T.
        examples: (documents,) which example each document is.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    document_starts: npt.NDArray[np.int64]
    examples: npt.NDArray[np.int64]


def pack(
    encoded: Sequence[Encoded], micro_batch_tokens: int, examples: npt.NDArray[np.int64] | None = None
) -> list[MicroBatch]:
    """Lay examples into as few rows as best-fit decreasing finds; each example is in exactly one row, whole.

    The same examples in the same order give the same rows.

    Args:
        encoded: at least one token each.
        micro_batch_tokens: most tokens in a row; a longer example has a row of its own (1: every one has).
        examples: (len(encoded),) the examples' numbers; 0, 1, ... if None.
    """
    return list(packed(encoded, micro_batch_tokens, examples))


def packed(
    encoded: Sequence[Encoded], micro_batch_tokens: int, examples: npt.NDArray[np.int64] | None = None
) -> Iterator[MicroBatch]:
    """As `pack`, one row at a time."""
    numbers = np.arange(len(encoded)) if examples is None else examples
    for row in best_fit(lengths_of(encoded).tolist(), micro_batch_tokens):
        yield _row([encoded[index] for index in row], numbers[row])


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best-fit decreasing (Johnson, 1973): the longest first, each into the fullest row that still holds it.

    Args:
        lengths: what each thing takes, at least 1.
        room: what a row holds; a longer thing has a row of its own.

    Returns:
        Indices into `lengths`, a list for each row, rising within it.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, row), rising
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):  # a stable sort: ties stay in order
        tightest = bisect_left(left, (lengths[index], 0))
        if tightest < len(left):
            room_left, row = left.pop(tightest)
        else:
            room_left, row = room, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(left, (room_left - lengths[index], row))
    return [sorted(row) for row in rows]


def _row(documents: Sequence[Encoded], examples: npt.NDArray[np.int64]) -> MicroBatch:
    lengths = [len(document.tokens) for document in documents]
    weights = np.array([document.weight for document in documents], np.float32)
    return MicroBatch(
        tokens=np.concatenate([document.tokens for document in documents], dtype=np.int64),
        labels=np.concatenate([document.labels for document in documents], dtype=np.int64),
        weights=np.repeat(weights, lengths),
        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        document_starts=np.cumsum([0, *lengths], dtype=np.int64),
        examples=examples.astype(np.int64),
    )
