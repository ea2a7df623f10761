"""Dropout on what a pair reads, keyed so that nothing about a run but its seed decides a mask.

A mask is a function of (seed, step, example, module): halving a micro-batch, packing otherwise or resuming changes
none. Layers that read the same input share one mask (PEFT draws one for each, so compare at dropout 0).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """The masks of one packed row.

    Attributes:
        rate: share of the inputs that is dropped, above 0 and below 1.
        seed, step: of the run, and the number of the update.
        examples: which example each document of the row is.
        document_starts: where each document begins, and T at the end.
    """

    rate: float
    seed: int
    step: int
    examples: tuple[int, ...]
    document_starts: tuple[int, ...]

    def mask(self, module: str, width: int, dtype: torch.dtype) -> Tensor:
        """Factors (T, width) for the input of `module`'s pairs: 0 where dropped, 1 / (1 - rate) elsewhere."""
        parts = [
            _uniform(f"{self.seed}/{self.step}/{example}/{module}", end - start, width)
            for example, (start, end) in zip(self.examples, pairwise(self.document_starts), strict=True)
        ]
        return (torch.cat(parts) >= self.rate).to(dtype).div_(1 - self.rate)


def mask_of(dropout: Dropout | None, module: str, x: Tensor) -> Tensor | None:
    """The mask for x (T, in), the input of `module`'s pairs; None without dropout."""
    return None if dropout is None else dropout.mask(module, x.shape[-1], x.dtype)


def _uniform(key: str, rows: int, width: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") & (2**63 - 1)
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
