"""Cross-entropy of a chunk of logits, and in their place its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguflora.kernels.numeric import exp, get, kernel, larger, my_rows, numbers, part, put, words_of
from gguflora.kernels.threads import is_half, place, run


@part
def _cross_entropy_rows(words: Any, kind: Any) -> None:
    n = words[2]
    labels, nll = numbers(words[5], words[0], np.int64), numbers(words[7], words[0], np.float32)
    first, end = my_rows(words[0])
    for row in range(first, end):
        logits = numbers(words[3] + row * words[4], n, kind)
        largest = np.float32(-np.inf)
        for i in range(n):
            largest = larger(largest, get(logits, i))
        total = np.float32(0)
        for i in range(n):
            total += exp(get(logits, i) - largest)
        lse = largest + np.log(total)
        target = labels[row]
        nll[row] = lse - get(logits, target)
        if words[6]:
            weight = numbers(words[6], words[0], np.float32)[row]
            for i in range(n):
                hit = np.float32(1) if i == target else np.float32(0)
                put(logits, i, (exp(get(logits, i) - lse) - hit) * weight)


@kernel
def _cross_entropy(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _cross_entropy_rows(words, np.uint16)
    else:
        _cross_entropy_rows(words, np.float32)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The nll (n,) of labels (n,); with weights (n,) logits (n, V) become the gradient of sum(weights * nll)."""
    rows, n = logits.shape
    nll = torch.empty(rows)
    address = 0 if weights is None else weights.data_ptr()
    run(_cross_entropy.address, rows, is_half(logits), n, *place(logits), labels.data_ptr(), address, nll.data_ptr())
    return nll
