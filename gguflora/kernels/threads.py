"""Functions that numba compiled, run on torch's own OpenMP threads.

torch's wheels for Linux bring libgomp. What a compiler calls for `#pragma omp parallel`, GOMP_parallel, runs a C
function once on each thread of the pool; here it gets one that numba made. So there is one pool: numba's own beside
it would fight with torch's for the processor.

A kernel is a C function of one argument, 64-bit words: how many rows there are, then what `run` was given, addresses
and numbers. Each thread takes a share of the rows, and no row's result depends on whose share it is in.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = 32  # room for a kernel's arguments


@cache
def libgomp() -> ctypes.CDLL | None:
    """The OpenMP library that torch runs on; None where torch has none, or another than libgomp."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None  # not Linux
    home = str(Path(torch.__file__).parent.parent)  # site-packages: torch/lib, or torch.libs beside it
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    ours = [path for path in paths if path.startswith(home)]
    return ctypes.CDLL(ours[0]) if len(ours) == 1 else None


def run(address: int, rows: int, *words: int | float) -> None:
    """Run a compiled kernel over `rows` rows on torch's threads, and wait for it.

    Args:
        address: of the C function.
        rows: how many there are to share.
        words: the kernel's arguments; a float goes as the bits of a double.
    """
    library = libgomp()
    if library is None:
        raise AssertionError("compiled kernels need torch's libgomp; ask choose_operations first")
    packed = (ctypes.c_int64 * WORDS)(rows, *map(_word, words))
    library.GOMP_parallel(ctypes.c_void_p(address), packed, torch.get_num_threads(), 0)


def place(x: Tensor) -> tuple[int, int]:
    """Where a tensor's rows are: the first one's address, and bytes from one to the next.

    Raises:
        AssertionError: the numbers of a row don't lie next to each other, as kernels read them.
    """
    if not x[:1].is_contiguous():
        raise AssertionError(f"rows of shape {tuple(x.shape)} with strides {x.stride()} don't lie together")
    return x.data_ptr(), x.stride(0) * x.element_size()


def is_half(x: Tensor) -> bool:
    """Whether a tensor is in bfloat16; float32 is the other dtype that kernels know."""
    return x.dtype is torch.bfloat16


def _word(value: float) -> int:
    if isinstance(value, int):
        return value
    bits: tuple[Any, ...] = struct.unpack("q", struct.pack("d", value))
    return int(bits[0])
