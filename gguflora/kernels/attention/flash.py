"""Attention by tiles on processors with AVX512-BF16: document by document, 32 queries and a block of keys at a time.

Scores never leave the caches, so memory grows with the length of a document and not with its square; nothing is
computed of what no query of a block sees; and products run in registers, without the copies that a library's want.
What it must equal is reference.attention; explicit.py computes the same by a library's products, and does so here for
heads of other sizes and for float32.

Work is cut into items, which threads take one after the other, the longest first: a key head of a document with all
query heads that read it, or a part of its queries where the document is long. How it is cut depends on lengths alone,
and an item's numbers on the item alone, so the bits are the same on any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log2

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gguflora.kernels.attention import flash_backward, flash_forward
from gguflora.kernels.attention.flash_backward import backward_kernel
from gguflora.kernels.attention.flash_forward import forward_kernel
from gguflora.kernels.attention.flash_parts import (
    ALONE,
    SIZES_OF_HEADS,
    Item,
    backward_items,
    forward_items,
    parts_of,
)
from gguflora.kernels.threads import place, run

EVERYTHING = 1 << 30  # a window that hides nothing


@dataclass(frozen=True)
class Scratch:
    """Memory that kernels work in, and the addresses (threads, areas) in it."""

    memory: Tensor
    places: npt.NDArray[np.int64]


def suits(q: Tensor) -> bool:
    """Whether queries (T, H, h) are of a dtype and a size that tiles are for."""
    return q.dtype is torch.bfloat16 and q.shape[-1] % SIZES_OF_HEADS == 0


def forward(
    q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float, window: int | None, out: Tensor
) -> Tensor:
    """Write out (T, H, h) for q (T, H, h), k and v (T, K, h); arguments as reference.attention.

    Returns:
        lse (H, T): the logarithm to the base 2 of each query's sum of exponentials, for the backward.
    """
    tokens, heads, size = q.shape
    items = forward_items(document_starts, window, k.shape[1])
    table, counter = np.array(items, np.int64), torch.zeros(1, dtype=torch.int64)
    largest, total = torch.empty(heads, tokens), torch.empty(heads, tokens)
    scratch = _scratch(flash_forward.areas(max(item.keys for item in items), size // 2))
    run(
        forward_kernel.address,
        len(items),
        table.ctypes.data,
        counter.data_ptr(),
        size // 2,
        heads // k.shape[1],
        window or EVERYTHING,
        scale * log2(e),
        scratch.places.ctypes.data,
        largest.data_ptr(),
        total.data_ptr(),
        tokens,
        *(word for x in (q, k, v, out) for word in place(x)),
    )
    return largest.mul_(scale * log2(e)).add_(total.log2_())


def backward(
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    document_starts: list[int],
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, h), dk and dv (T, K, h) for d_out (T, H, h), the forward's out and lse, and q, k and v."""
    q, k, v = qkv
    tokens, heads, size = q.shape
    items, room = backward_items(document_starts, window, k.shape[1], size)
    table, counter = np.array(items, np.int64), torch.zeros(1, dtype=torch.int64)
    keys = max(item.keys for item in items)
    summed = max((item.keys for item in items if item.sums == ALONE), default=0)
    scratch = _scratch(flash_backward.areas(keys, size // 2, summed))
    parts = torch.empty(room // 4)
    dq, dk, dv = torch.empty_like(q), torch.empty(k.shape, dtype=k.dtype), torch.empty(v.shape, dtype=v.dtype)
    run(
        backward_kernel.address,
        len(items),
        table.ctypes.data,
        counter.data_ptr(),
        size // 2,
        heads // k.shape[1],
        window or EVERYTHING,
        scale * log2(e),
        float(scale),
        scratch.places.ctypes.data,
        lse.data_ptr(),
        tokens,
        parts.data_ptr(),
        *(word for x in (q, k, v, out, d_out, dq, dk, dv) for word in place(x)),
    )
    _sum_parts(items, parts, scale, dk, dv)
    return dq, dk, dv


def _scratch(sizes: list[int]) -> Scratch:
    """Room for areas of these sizes for each thread."""
    ends = np.cumsum(sizes, dtype=np.int64)
    memory = torch.empty(torch.get_num_threads(), int(ends[-1]), dtype=torch.uint8)
    rows = memory.data_ptr() + np.arange(len(memory), dtype=np.int64) * memory.stride(0)
    return Scratch(memory, rows[:, None] + (ends - sizes))


def _sum_parts(items: list[Item], parts: Tensor, scale: float, dk: Tensor, dv: Tensor) -> None:
    """Write dk and dv of documents that are cut: their parts' sums one after the other, from the first to the last."""
    size = dk.shape[-1]
    for members in parts_of(items):
        last = members[-1]
        total = torch.zeros(2, last.end, size)
        for item in members:
            sums = parts[item.sums // 4 :][: 2 * item.keys * size].view(2, item.keys, size)
            total[:, item.first : item.end] += sums[:, : item.end - item.first]
        dk[last.begin : last.begin + last.end, last.head] = total[0] * scale
        dv[last.begin : last.begin + last.end, last.head] = total[1]
