"""explicit.py's gated activation in one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gguflora.kernels.numeric import exp, get, kernel, my_rows, numbers, part, put, words_of
from gguflora.kernels.threads import is_half, place, run

ONE = np.float32(1)
CUBIC = np.float32(0.044715)
SLOPE = np.float32(2 * (2 / np.pi) ** 0.5)  # of the tanh form: 1/2 (1 + tanh(u)) = sigmoid(2u)


@part
def _inner(g: Any) -> Any:
    """What the tanh form of GELU takes the sigmoid of."""
    return SLOPE * (g + CUBIC * g * g * g)


@part
def _forward_rows(words: Any, kind: Any) -> None:
    n, silu = words[2], words[3]
    first, end = my_rows(words[0])
    for row in range(first, end):
        gate = numbers(words[4] + row * words[5], n, kind)
        up = numbers(words[6] + row * words[7], n, kind)
        y = numbers(words[8] + row * words[9], n, kind)
        if silu:
            for i in range(n):
                g = get(gate, i)
                put(y, i, g / (ONE + exp(-g)) * get(up, i))
        else:
            for i in range(n):
                g = get(gate, i)
                put(y, i, g / (ONE + exp(-_inner(g))) * get(up, i))


@part
def _backward_rows(words: Any, kind: Any) -> None:
    """With the share s = sigmoid(u) = 1 / (1 + e) of the gate that passes, 1 - s is e s: no cancellation."""
    n, silu = words[2], words[3]
    first, end = my_rows(words[0])
    for row in range(first, end):
        dy = numbers(words[4] + row * words[5], n, kind)
        gate = numbers(words[6] + row * words[7], n, kind)
        up = numbers(words[8] + row * words[9], n, kind)
        d_gate = numbers(words[10] + row * words[11], n, kind)
        d_up = numbers(words[12] + row * words[13], n, kind)
        y = numbers(words[14] + row * words[15], n, kind)
        if silu:
            for i in range(n):
                g, d = get(gate, i), get(dy, i)
                e = exp(-g)
                share = ONE / (ONE + e)
                put(d_up, i, d * g * share)
                put(y, i, g * share * get(up, i))
                put(d_gate, i, d * get(up, i) * share * (ONE + g * e * share))
        else:
            for i in range(n):
                g, d = get(gate, i), get(dy, i)
                e = exp(-_inner(g))
                share = ONE / (ONE + e)
                put(d_up, i, d * g * share)
                put(y, i, g * share * get(up, i))
                slope = ONE + g * e * share * SLOPE * (ONE + np.float32(3) * CUBIC * g * g)
                put(d_gate, i, d * get(up, i) * share * slope)


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


def forward(gate: Tensor, up: Tensor, activation: str, y: Tensor) -> None:
    """Write y (T, F) for gate and up (T, F)."""
    rows, n = gate.shape
    run(_forward.address, rows, is_half(y), n, activation == "silu", *place(gate), *place(up), *place(y))


def backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str, d_gate: Tensor, d_up: Tensor, y: Tensor) -> None:
    """Write d_gate and d_up (T, F) for dy (T, F), and y once more."""
    rows, n = gate.shape
    tensors = (word for x in (dy, gate, up, d_gate, d_up, y) for word in place(x))
    run(_backward.address, rows, is_half(dy), n, activation == "silu", *tensors)
