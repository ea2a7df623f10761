"""How blocks store their parts: numbers as raw bytes, and small integers packed several to a byte."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The little-endian numbers that uint8 `packed` (n, b) holds: (n, b / size) of `dtype`."""
    # torch reads bytes as wider numbers only at whole multiples of their size, so other views are copied first.
    whole = all(step % dtype.itemsize == 0 for step in (packed.storage_offset(), *packed.stride()[:-1]))
    if not (whole and packed.stride(-1) == 1):
        packed = packed.clone(memory_format=torch.contiguous_format)
    return packed.view(dtype)


def f16(packed: Tensor) -> Tensor:
    """float16 numbers, widened: (n, b) -> (n, b / 2) float32."""
    return numbers(packed, torch.float16).float()


def unpack(packed: Tensor, width: int, run: int) -> Tensor:
    """Small unsigned integers: (n, b) -> (n, 8 b / width) uint8.

    Args:
        packed: (n, b) bytes, each of 8 / width integers.
        width: bits of an integer.
        run: in each run of so many bytes come first all bytes' lowest `width` bits, then all bytes' next, and so on.

    For example bytes 0x21 and 0x43 hold, at width 4, the integers 1, 3, 2, 4 in one run and 1, 2, 3, 4 in runs of one.
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    runs = torch.unflatten(packed, -1, (-1, 1, run))  # (n, runs, 1, run)
    return ((runs >> shifts[:, None]) & (1 << width) - 1).flatten(1)


def scaled(elements: Tensor, scales: Tensor, minimums: Tensor | None = None) -> Tensor:
    """Times a scale and less a minimum, each of which belongs to a whole group of neighbours.

    Args:
        elements: (n, e) of any dtype.
        scales: (n, groups) float32.
        minimums: (n, groups) float32, or None.

    Returns:
        (n, e) float32.
    """
    groups = torch.unflatten(elements.float(), -1, (scales.shape[-1], -1))  # (n, groups, e / groups)
    values = groups * scales[..., None]
    return (values if minimums is None else values - minimums[..., None]).flatten(1)
