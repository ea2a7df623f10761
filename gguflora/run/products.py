"""How fast this machine multiplies matrices in each way that training may: by dtype, and by tiles."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from gguflora.kernels.operations import TORCH, Operations

SIZES = (512, 768, 768)  # rows, in, out: 50 ms in float32 on two cores, some seconds where bfloat16 is emulated
REPEATS = 3
TILES = "tiles"


def product_rates(operations: Operations) -> dict[str, float]:
    """Operations a second, by dtype, and by tiles in bfloat16 where `operations` has them.

    Each is of x W^T and dy W together, at their best of REPEATS.
    """
    rates = {str(dtype).removeprefix("torch."): _rate(dtype, TORCH) for dtype in (torch.float32, torch.bfloat16)}
    if operations.lora_linear is not TORCH.lora_linear:
        rates[TILES] = _rate(torch.bfloat16, operations)
    return rates


def _rate(dtype: torch.dtype, operations: Operations) -> float:
    rows, columns, out = SIZES
    weight = torch.ones(out, columns, dtype=dtype)
    x, dy = torch.ones(rows, columns, dtype=dtype), torch.ones(rows, out, dtype=dtype)
    y, dx = torch.empty_like(dy), torch.empty_like(x)
    linear = operations.lora_linear
    seconds = _best(lambda: linear.forward(x, weight, None, None, y, None))
    seconds += _best(lambda: linear.backward(dy, None, weight, None, dx))
    return 4 * rows * columns * out / seconds


def _best(multiply: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one prepares what the others use
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return min(times[1:])
