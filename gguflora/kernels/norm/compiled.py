"""explicit.py's RMS norm, a row at a time: each row is read from memory once."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gguflora.kernels.numeric import get, kernel, my_rows, numbers, part, put, single, words_of
from gguflora.kernels.threads import is_half, place, run


@part
def _forward_rows(words: Any, kind: Any) -> None:
    n, measure, epsilon = words[2], words[9], single(words[10])
    weight, factors = numbers(words[5], n, np.float32), numbers(words[8], words[0], np.float32)
    first, end = my_rows(words[0])
    for row in range(first, end):
        x = numbers(words[3] + row * words[4], n, np.float32)
        y = numbers(words[6] + row * words[7], n, kind)
        if measure:
            total = np.float32(0)
            for i in range(n):
                total += x[i] * x[i]
            factors[row] = np.float32(1) / np.sqrt(total / np.float32(n) + epsilon)
        r = factors[row]
        for i in range(n):
            put(y, i, x[i] * r * weight[i])


@part
def _backward_rows(words: Any, dy_kind: Any, dx_kind: Any) -> None:
    n, add = words[2], words[11]
    weight, factors = numbers(words[7], n, np.float32), numbers(words[8], words[0], np.float32)
    first, end = my_rows(words[0])
    for row in range(first, end):
        dy = numbers(words[3] + row * words[4], n, dy_kind)
        x = numbers(words[5] + row * words[6], n, np.float32)
        dx = numbers(words[9] + row * words[10], n, dx_kind)
        inner = np.float32(0)
        for i in range(n):
            inner += get(dy, i) * weight[i] * x[i]
        r = factors[row]
        inner *= r * r / np.float32(n)
        if add:
            for i in range(n):
                put(dx, i, get(dx, i) + r * (get(dy, i) * weight[i] - x[i] * inner))
        else:
            for i in range(n):
                put(dx, i, r * (get(dy, i) * weight[i] - x[i] * inner))


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
    kinds = words[1]
    if kinds == 0:
        _backward_rows(words, np.float32, np.float32)
    elif kinds == 1:
        _backward_rows(words, np.uint16, np.float32)
    elif kinds == 2:
        _backward_rows(words, np.float32, np.uint16)
    else:
        _backward_rows(words, np.uint16, np.uint16)


def forward(x: Tensor, weight: Tensor, epsilon: float, y: Tensor, r: Tensor) -> None:
    """Write y (T, D), in its own dtype, and r (T, 1) for x (T, D) and weight (D,)."""
    rows, n = x.shape
    run(_forward.address, rows, is_half(y), n, *place(x), weight.data_ptr(), *place(y), r.data_ptr(), 1, float(epsilon))


def apply(x: Tensor, weight: Tensor, r: Tensor, y: Tensor) -> None:
    """Write y = x r w once more from a known r."""
    rows, n = x.shape
    run(_forward.address, rows, is_half(y), n, *place(x), weight.data_ptr(), *place(y), r.data_ptr(), 0, 0.0)


def backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dx: Tensor, add: bool = False) -> None:
    """Write, or add to, dx (T, D) for dy (T, D)."""
    rows, n = x.shape
    kinds = is_half(dy) + 2 * is_half(dx)
    run(_backward.address, rows, kinds, n, *place(dy), *place(x), weight.data_ptr(), r.data_ptr(), *place(dx), add)
