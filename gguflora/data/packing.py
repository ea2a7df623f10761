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


_CHOICES = 64  # things that a row is chosen from: far more than it takes to fill it to the last token


def pack(
    encoded: Sequence[Encoded],
    micro_batch_tokens: int,
    examples: npt.NDArray[np.int64] | None = None,
    *,
    tight: bool = False,
) -> list[MicroBatch]:
    """Lay examples into as few rows as best-fit decreasing finds; each example is in exactly one row, whole.

    The same examples in the same order give the same rows.

    Args:
        encoded: at least one token each.
        micro_batch_tokens: most tokens in a row; a longer example has a row of its own (1: every one has).
        examples: (len(encoded),) the examples' numbers; 0, 1, ... if None.
        tight: where best-fit decreasing has a row more than there could be, look for fewer: for examples that were
            chosen to fill their rows.
    """
    return list(packed(encoded, micro_batch_tokens, examples, tight=tight))


def packed(
    encoded: Sequence[Encoded],
    micro_batch_tokens: int,
    examples: npt.NDArray[np.int64] | None = None,
    *,
    tight: bool = False,
) -> Iterator[MicroBatch]:
    """As `pack`, one row at a time."""
    numbers = np.arange(len(encoded)) if examples is None else examples
    lay = fewest if tight else best_fit
    for row in lay(lengths_of(encoded).tolist(), micro_batch_tokens):
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


def fewest(lengths: Sequence[int], room: int) -> list[list[int]]:
    """`best_fit`, or `fullest` where that has fewer rows; it is tried only where fewer are conceivable."""
    rows = best_fit(lengths, room)
    long = [length for length in lengths if length > room]
    least = len(long) + -(-(sum(lengths) - sum(long)) // room)
    return rows if len(rows) == least else min(rows, fullest(lengths, room), key=len)


def fullest(lengths: Sequence[int], room: int) -> list[list[int]]:
    """One row after another, each with the longest thing left and what fills it best (minimum bin slack: Gupta and
    Ho, 1999); arguments and result as of `best_fit`.
    """
    rows: list[list[int]] = []
    left = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while left:
        choices = left[1 :: max(1, len(left) // _CHOICES)]
        chosen = filling([lengths[index] for index in choices], room - lengths[left[0]])
        rows.append(sorted([left[0], *(choices[place] for place in chosen)]))
        taken = set(rows[-1])
        left = [index for index in left if index not in taken]
    return rows


def filling(lengths: Sequence[int], room: int) -> list[int]:
    """Places of those lengths whose sum comes closest to `room` from below, the earlier ones where several do; rising.

    Subset sum, a bit for each sum (Bellman, 1957).
    """
    if room <= 0:
        return []
    sums = [1]  # bit n of sums[k]: some of the first k lengths sum to n
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & ((1 << room + 1) - 1))
    target = sums[-1].bit_length() - 1
    chosen = []
    for place in reversed(range(len(lengths))):
        if not sums[place] >> target & 1:
            chosen.append(place)
            target -= lengths[place]
    return chosen[::-1]


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
