"""Packed rows to a buffer of the compute dtype, by reference.py."""

from __future__ import annotations

from torch import Tensor

from gguflora.gguf.format import GgmlType
from gguflora.kernels.dequantise import reference


def dequantise(packed: Tensor, type: GgmlType, out: Tensor) -> None:
    """Write packed rows (n, bytes per row) to out (n, elements per row), rounded to its dtype."""
    out.copy_(reference.dequantise(packed, type))
