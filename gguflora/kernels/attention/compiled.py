"""The softmax of explicit.py's attention and its gradient, in place and over the keys that are seen alone.

Rows are queries, folded as explicit.py folds them: for each key head the positions of a block, for each position the
query heads of the group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguflora.kernels.attention.softmax import Softmax
from gguflora.kernels.numeric import exp, get, kernel, larger, my_number, my_rows, numbers, part, put, single, words_of
from gguflora.kernels.threads import is_half, place, run

CHUNK = 16  # rows that a thread takes at a time: later positions see more, so shares in one piece would be uneven

GUARD = 1024
"""Numbers between the scratch and what lies beside it. Before a loop LLVM compares the ranges of what it reads and
writes, and more than is touched; where the two seem to meet it takes another loop, which rounds otherwise."""


@part
def _seen(row: Any, words: Any) -> Any:
    """The keys that a row sees: from, to."""
    keys, group, positions, window = words[2], words[4], words[5], words[6]
    position = row % (positions * group) // group
    high = keys - positions + position + 1
    return max(0, high - window), high


@part
def _largest(scores: Any) -> Any:
    """The largest of a row. Four at once: each comparison waits for the one before it."""
    quarter = len(scores) // 4
    a = np.float32(-np.inf)
    b, c, d = a, a, a
    for i in range(quarter):
        a = larger(a, get(scores, i))
        b = larger(b, get(scores, i + quarter))
        c = larger(c, get(scores, i + 2 * quarter))
        d = larger(d, get(scores, i + 3 * quarter))
    for i in range(4 * quarter, len(scores)):
        a = larger(a, get(scores, i))
    return larger(larger(a, b), larger(c, d))


@part
def _forward_row(scores: Any, scratch: Any, scale: Any) -> None:
    n = len(scores)
    largest = _largest(scores)
    total = np.float32(0)
    for i in range(n):
        e = exp((get(scores, i) - largest) * scale)
        scratch[i] = e
        total += e
    share = np.float32(1) / total
    for i in range(n):
        put(scores, i, scratch[i] * share)


@part
def _forward_rows(words: Any, kind: Any) -> None:
    keys, scale = words[2], single(words[7])
    number, count = my_number()
    scratch = numbers(words[8] + number * keys * 4, keys, np.float32)
    size = 2 if words[1] else 4
    for start in range(number * CHUNK, words[0], count * CHUNK):
        for row in range(start, min(start + CHUNK, words[0])):
            low, high = _seen(row, words)
            scores = numbers(words[3] + row * keys * size, keys, kind)
            _forward_row(scores[low:high], scratch, scale)
            scores[:low] = 0
            scores[high:] = 0


@part
def _backward_rows(words: Any, kind: Any) -> None:
    keys, scale = words[2], single(words[7])
    first, end = my_rows(words[0])
    for row in range(first, end):
        p = numbers(words[3] + row * words[4], keys, kind)
        dp = numbers(words[5] + row * words[6], keys, kind)
        inner = np.float32(0)
        for i in range(keys):
            inner += get(p, i) * get(dp, i)
        for i in range(keys):
            put(dp, i, get(p, i) * (get(dp, i) - inner) * scale)


@kernel
def _forward(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _forward_rows(words, np.uint16)
    else:
        _forward_rows(words, np.float32)


@kernel
def _backward(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _backward_rows(words, np.uint16)
    else:
        _backward_rows(words, np.float32)


def forward(scores: Tensor, positions: int, scale: float, window: int | None) -> None:
    """Turn scores (K, n G, m) of the last n of m positions into probabilities, 0 where nothing is seen."""
    heads, rows, keys = scores.shape
    guard = GUARD + 2 * keys
    scratch = torch.empty(2 * guard + torch.get_num_threads() * keys)[guard:]
    words = (is_half(scores), keys, scores.data_ptr(), rows // positions, positions, window or keys)
    run(_forward.address, heads * rows, *words, float(scale), scratch.data_ptr())


def backward(p: Tensor, dp: Tensor, scale: float) -> None:
    """Turn dp (K, n G, m), the gradient of probabilities p, into that of the products before `scale`."""
    tensors = (word for x in (p, dp) for word in place(x.flatten(0, 1)))
    run(_backward.address, p.shape[0] * p.shape[1], is_half(p), p.shape[2], *tensors, float(scale))


COMPILED = Softmax(forward, backward)
