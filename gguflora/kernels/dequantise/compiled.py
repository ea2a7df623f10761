"""The common types' blocks to numbers, a row at a time, to the bits of reference.py.

Layouts: ggml/src/ggml-common.h; arithmetic: ggml/src/ggml-quants.c, dequantize_row_*, in whose order it must stay: no
multiplication is fused with an addition here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gguflora.gguf.format import GgmlType
from gguflora.kernels.dequantise import into
from gguflora.kernels.numeric import exact_kernel, exactly, float16_at, my_rows, numbers, put, words_of
from gguflora.kernels.threads import is_half, place, run

LOW, SIX = np.uint8(15), np.uint8(63)


@exactly
def _q4_0(row: Any, out: Any) -> None:
    for block in range(len(out) // 32):
        at, to = block * 18, block * 32
        d = float16_at(row, at)
        for i in range(16):
            q = row[at + 2 + i]
            put(out, to + i, np.float32(np.int32(q & LOW) - 8) * d)
            put(out, to + 16 + i, np.float32(np.int32(q >> 4) - 8) * d)


@exactly
def _q4_1(row: Any, out: Any) -> None:
    for block in range(len(out) // 32):
        at, to = block * 20, block * 32
        d, m = float16_at(row, at), float16_at(row, at + 2)
        for i in range(16):
            q = row[at + 4 + i]
            put(out, to + i, np.float32(q & LOW) * d + m)
            put(out, to + 16 + i, np.float32(q >> 4) * d + m)


@exactly
def _fifth_bits(row: Any, at: Any) -> Any:
    return np.uint32(row[at] | row[at + 1] << 8 | row[at + 2] << 16 | row[at + 3] << 24)


@exactly
def _q5_0(row: Any, out: Any) -> None:
    for block in range(len(out) // 32):
        at, to = block * 22, block * 32
        d, fifth = float16_at(row, at), _fifth_bits(row, at + 2)
        for i in range(16):
            q = row[at + 6 + i]
            put(out, to + i, np.float32(np.int32(q & LOW | (fifth >> i & 1) << 4) - 16) * d)
            put(out, to + 16 + i, np.float32(np.int32(q >> 4 | (fifth >> (i + 16) & 1) << 4) - 16) * d)


@exactly
def _q5_1(row: Any, out: Any) -> None:
    for block in range(len(out) // 32):
        at, to = block * 24, block * 32
        d, m, fifth = float16_at(row, at), float16_at(row, at + 2), _fifth_bits(row, at + 4)
        for i in range(16):
            q = row[at + 8 + i]
            put(out, to + i, np.float32(np.int32(q & LOW | (fifth >> i & 1) << 4)) * d + m)
            put(out, to + 16 + i, np.float32(np.int32(q >> 4 | (fifth >> (i + 16) & 1) << 4)) * d + m)


@exactly
def _q8_0(row: Any, out: Any) -> None:
    for block in range(len(out) // 32):
        at, to = block * 34, block * 32
        d = float16_at(row, at)
        for i in range(32):
            put(out, to + i, np.float32(np.int8(row[at + 2 + i])) * d)


@exactly
def _scale_and_minimum(row: Any, at: Any, group: Any) -> Any:
    """Of Q4_K's and Q5_K's groups: six bits each in twelve bytes (ggml-quants.c:880)."""
    if group < 4:
        return row[at + group] & SIX, row[at + group + 4] & SIX
    low = row[at + group + 4]
    return low & LOW | row[at + group - 4] >> 6 << 4, low >> 4 | row[at + group] >> 6 << 4


@exactly
def _q4_k(row: Any, out: Any) -> None:
    for block in range(len(out) // 256):
        at, to = block * 144, block * 256
        d, dmin = float16_at(row, at), float16_at(row, at + 2)
        for group in range(8):
            scale, minimum = _scale_and_minimum(row, at + 4, group)
            step, least = d * np.float32(scale), dmin * np.float32(minimum)
            nibbles = row[at + 16 + group // 2 * 32 :]
            shift = group % 2 * 4
            for i in range(32):
                put(out, to + group * 32 + i, step * np.float32(nibbles[i] >> shift & 15) - least)


@exactly
def _q5_k(row: Any, out: Any) -> None:
    for block in range(len(out) // 256):
        at, to = block * 176, block * 256
        d, dmin = float16_at(row, at), float16_at(row, at + 2)
        fifth = row[at + 16 :]
        for group in range(8):
            scale, minimum = _scale_and_minimum(row, at + 4, group)
            step, least = d * np.float32(scale), dmin * np.float32(minimum)
            nibbles = row[at + 48 + group // 2 * 32 :]
            shift = group % 2 * 4
            for i in range(32):
                number = (nibbles[i] >> shift & 15) + (fifth[i] >> group & 1) * 16
                put(out, to + group * 32 + i, step * np.float32(number) - least)


@exactly
def _q6_k(row: Any, out: Any) -> None:
    for block in range(len(out) // 256):
        at, to = block * 210, block * 256
        d = float16_at(row, at + 208)
        for group in range(16):  # of 16 elements
            half, quarter, part = group // 8, group % 8 // 2, group % 2 * 16
            low = row[at + half * 64 + quarter % 2 * 32 + part :]
            high = row[at + 128 + half * 32 + part :]
            step = d * np.float32(np.int8(row[at + 192 + group]))
            for i in range(16):
                number = low[i] >> quarter // 2 * 4 & 15 | (high[i] >> quarter * 2 & 3) << 4
                put(out, to + group * 16 + i, step * np.float32(np.int32(number) - 32))


@exactly
def _rows(words: Any, kind: Any) -> None:
    code, elements = words[2], words[3]
    first, end = my_rows(words[0])
    for index in range(first, end):
        row = numbers(words[4] + index * words[5], words[5], np.uint8)
        out = numbers(words[6] + index * words[7], elements, kind)
        if code == 0:
            _q4_0(row, out)
        elif code == 1:
            _q4_1(row, out)
        elif code == 2:
            _q5_0(row, out)
        elif code == 3:
            _q5_1(row, out)
        elif code == 4:
            _q8_0(row, out)
        elif code == 5:
            _q4_k(row, out)
        elif code == 6:
            _q5_k(row, out)
        else:
            _q6_k(row, out)


@exact_kernel
def _dequantise(pointer: Any) -> None:
    words = words_of(pointer)
    if words[1]:
        _rows(words, np.uint16)
    else:
        _rows(words, np.float32)


def dequantise(packed: Tensor, type: GgmlType, out: Tensor) -> None:
    """Write packed rows (n, bytes per row) to out (n, elements per row), rounded to its dtype."""
    if type in CODES:
        rows, elements = out.shape
        run(_dequantise.address, rows, is_half(out), CODES[type], elements, *place(packed), *place(out))
    else:
        into.dequantise(packed, type, out)


CODES = {
    type: number
    for number, type in enumerate(
        (
            GgmlType.Q4_0,
            GgmlType.Q4_1,
            GgmlType.Q5_0,
            GgmlType.Q5_1,
            GgmlType.Q8_0,
            GgmlType.Q4_K,
            GgmlType.Q5_K,
            GgmlType.Q6_K,
        )
    )
}
