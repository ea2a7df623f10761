"""explicit.py's rotation, from where the heads stand to where they are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gguflora.kernels.numeric import get, kernel, my_rows, numbers, part, put, single, words_of
from gguflora.kernels.threads import is_half, place, run


@part
def _turn_half_split(x: Any, out: Any, cos: Any, sin: Any, sign: Any) -> None:
    half = len(cos)
    for i in range(half):
        a, b = get(x, i), get(x, i + half)
        put(out, i, a * cos[i] - b * sin[i] * sign)
        put(out, i + half, b * cos[i] + a * sin[i] * sign)


@part
def _turn_consecutive(x: Any, out: Any, cos: Any, sin: Any, sign: Any) -> None:
    for i in range(len(cos)):
        a, b = get(x, 2 * i), get(x, 2 * i + 1)
        put(out, 2 * i, a * cos[i] - b * sin[i] * sign)
        put(out, 2 * i + 1, b * cos[i] + a * sin[i] * sign)


@part
def _rotate_rows(words: Any, kind: Any) -> None:
    heads, size, sign = words[2], words[3], single(words[11])
    half = size // 2
    first, end = my_rows(words[0])
    for row in range(first, end):
        x = numbers(words[4] + row * words[5], heads * size, kind)
        cos = numbers(words[6] + row * half * 4, half, np.float32)
        sin = numbers(words[7] + row * half * 4, half, np.float32)
        out = numbers(words[8] + row * words[9], heads * size, kind)
        for start in range(0, heads * size, size):
            if words[10]:
                _turn_half_split(x[start : start + size], out[start : start + size], cos, sin, sign)
            else:
                _turn_consecutive(x[start : start + size], out[start : start + size], cos, sin, sign)


@kernel
def _rotate(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _rotate_rows(words, np.uint16)
    else:
        _rotate_rows(words, np.float32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool, out: Tensor, back: bool = False) -> None:
    """Write x (T, H, h) turned by its angles, or with `back` by the opposite ones, to out (T, H, h)."""
    rows, heads, size = x.shape
    angles = (cos.data_ptr(), sin.data_ptr())
    sign = -1.0 if back else 1.0
    run(_rotate.address, rows, is_half(x), heads, size, *place(x), *angles, *place(out), half_split, sign)
