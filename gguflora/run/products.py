"""How fast this machine multiplies matrices in each dtype that training may run in."""

from __future__ import annotations

import time

import torch

SIZES = (512, 768, 768)  # rows, in, out: 50 ms in float32 on two cores, some seconds where bfloat16 is emulated
REPEATS = 3


def product_rates() -> dict[str, float]:
    """Operations a second, by dtype: x W^T and dy W together, each at its best of REPEATS."""
    return {str(dtype).removeprefix("torch."): _rate(dtype) for dtype in (torch.float32, torch.bfloat16)}


def _rate(dtype: torch.dtype) -> float:
    rows, columns, out = SIZES
    weight = torch.ones(out, columns, dtype=dtype)
    x, dy = torch.ones(rows, columns, dtype=dtype), torch.ones(rows, out, dtype=dtype)
    seconds = _best(x, weight.t()) + _best(dy, weight)
    return 4 * rows * columns * out / seconds


def _best(left: torch.Tensor, right: torch.Tensor) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one prepares what the others use
        started = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - started)
    return min(times[1:])
