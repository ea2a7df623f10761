"""explicit.py's sum, as fast as memory: torch adds tensors of two dtypes three times as slowly (docs/log.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gguflora.kernels.numeric import get, kernel, my_rows, numbers, part, words_of
from gguflora.kernels.threads import is_half, place, run


@part
def _add_rows(words: Any, kind: Any) -> None:
    n = words[2]
    first, end = my_rows(words[0])
    for row in range(first, end):
        h = numbers(words[3] + row * words[4], n, np.float32)
        branch = numbers(words[5] + row * words[6], n, kind)
        out = numbers(words[7] + row * words[8], n, np.float32)
        for i in range(n):
            out[i] = h[i] + get(branch, i)


@kernel
def _add(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _add_rows(words, np.uint16)
    else:
        _add_rows(words, np.float32)


def add(h: Tensor, branch: Tensor, out: Tensor) -> None:
    """As explicit.add, for h and out in float32."""
    rows, n = h.shape
    run(_add.address, rows, is_half(branch), n, *place(h), *place(branch), *place(out))
