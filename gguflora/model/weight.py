"""A weight of the base: resident (dequantised once) or packed (the file's own blocks, dequantised at each use)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.gguf import GgmlType
from gguflora.kernels.dequantise.into import dequantise


@dataclass(frozen=True)
class PackedRows:
    """Rows as they lie in the file: data (rows, bytes per row), uint8."""

    data: Tensor
    type: GgmlType


@dataclass(frozen=True)
class PackedWeight:
    """A matrix (out, in) in the file's blocks.

    Attributes:
        parts: rows under each other: one part for a layer, several for layers that share an input.
        dtype: what it is dequantised to.
    """

    parts: tuple[PackedRows, ...]
    shape: tuple[int, int]
    dtype: torch.dtype


Weight = Tensor | PackedWeight


def dense(weight: Weight) -> Tensor:
    """The matrix (out, in) in the compute dtype: a resident one as it is, a packed one dequantised."""
    if isinstance(weight, Tensor):
        return weight
    matrix = torch.empty(weight.shape, dtype=weight.dtype)
    unpack(weight, dequantise, matrix)
    return matrix


def unpack(weight: PackedWeight, dequantise: Callable[[Tensor, GgmlType, Tensor], None], matrix: Tensor) -> None:
    """Write a packed weight to matrix (out, in), by a version of `dequantise`."""
    row = 0
    for part in weight.parts:
        rows = part.data.shape[0]
        dequantise(part.data, part.type, matrix[row : row + rows])
        row += rows


def stacked(weights: list[Weight]) -> Weight:
    """Matrices that share their columns, under each other."""
    if all(isinstance(weight, PackedWeight) for weight in weights):
        packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
        rows = sum(weight.shape[0] for weight in packed)
        parts = tuple(part for weight in packed for part in weight.parts)
        return PackedWeight(parts, (rows, packed[0].shape[1]), packed[0].dtype)
    return torch.cat([dense(weight) for weight in weights])
