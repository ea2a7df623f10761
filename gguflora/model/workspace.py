"""What the explicit forward and backward work with: buffers that are allocated once and reused for every row, and the
version of the operations between the products.

Freshly allocated memory costs a page fault for each 4 KiB at its first use; a step of SmolLM2 touched 360,000 pages
before buffers were kept and 8,000 after (docs/log.md).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gguflora.kernels.operations import TORCH, Operations
from gguflora.model.weight import Weight, unpack


class Workspace:
    """Named buffers, each made at its first use for rows of up to `tokens` tokens.

    What a buffer holds between two uses is undefined: `poison` fills them with NaN, so that a test can tell whether
    anything reads a value that was not written for it.
    """

    def __init__(self, tokens: int, operations: Operations = TORCH) -> None:
        self.tokens = tokens
        self.operations = operations
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The buffer `name` as a tensor of `shape`, whose first dimension is (a multiple of) tokens."""
        elements = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < elements or buffer.dtype is not dtype:
            room = max(shape[0], self.tokens) * prod(shape[1:])
            buffer = self._buffers[name] = torch.empty(room, dtype=dtype)
        return buffer[:elements].view(shape)

    def dense(self, weight: Weight) -> Tensor:
        """A weight (out, in) in the compute dtype; a packed one in a scratch buffer that the next one overwrites."""
        if isinstance(weight, Tensor):
            return weight
        scratch = self._buffers.get("weight")
        if scratch is None or scratch.numel() < prod(weight.shape) or scratch.dtype is not weight.dtype:
            scratch = self._buffers["weight"] = torch.empty(prod(weight.shape), dtype=weight.dtype)
        matrix = scratch[: prod(weight.shape)].view(weight.shape)
        unpack(weight, self.operations.dequantise, matrix)
        return matrix

    def release(self, tokens: int) -> None:
        """Give the buffers back; new ones are made for rows of up to `tokens` tokens."""
        self.tokens = tokens
        self._buffers.clear()

    def poison(self) -> None:
        """Fill every buffer with NaN."""
        for buffer in self._buffers.values():
            buffer.fill_(float("nan"))

    @property
    def nbytes(self) -> int:
        """Memory that the buffers take, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
