"""Linear layers that read the same input, as one product: q/k/v, gate/up, and groups of one.

Their pairs are stacked for the product (kernels/lora_linear/explicit.py) and gradients are taken apart again here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gguflora.kernels.lora_linear.explicit import StackedPairs
from gguflora.model.linear import Linear
from gguflora.model.workspace import Workspace


def stack_pairs(linears: Sequence[Linear], dtype: torch.dtype) -> StackedPairs | None:
    """The pairs of layers that share an input: A (R, in), B (O, R) with a block for each pair; None without any."""
    paired = [linear for linear in linears if linear.pair]
    if not paired:
        return None
    a = torch.cat([linear.pair.lora_a.detach() for linear in paired if linear.pair]).to(dtype)
    b = a.new_zeros(sum(linear.weight.shape[0] for linear in linears), a.shape[0])
    for linear, rows, columns in _blocks(linears):
        assert linear.pair is not None
        b[rows, columns] = linear.pair.lora_b.detach().to(dtype)
    return StackedPairs(a, b, paired[0].scale)


def inner_buffer(pairs: StackedPairs | None, work: Workspace, name: str, tokens: int) -> Tensor | None:
    """A buffer for a group's x A^T, (T, R); None without pairs."""
    return None if pairs is None else work.take(name, (tokens, pairs.a.shape[0]), pairs.a.dtype)


def add_gradients(linears: Sequence[Linear], gradients: tuple[Tensor, Tensor] | None) -> None:
    """Add dA (R, in) and dB (O, R) of a group to its pairs' own gradients."""
    if gradients is None:
        return
    da, db = gradients
    for linear, rows, columns in _blocks(linears):
        assert linear.pair is not None
        _add(linear.pair.lora_a, da[columns])
        _add(linear.pair.lora_b, db[rows, columns])


def stack_bias(linears: Sequence[Linear], dtype: torch.dtype) -> Tensor | None:
    """The group's bias (O,), zero for layers without; None if none has one."""
    if all(linear.bias is None for linear in linears):
        return None
    parts = [
        torch.zeros(linear.weight.shape[0], dtype=dtype) if linear.bias is None else linear.bias for linear in linears
    ]
    return torch.cat(parts)


def _blocks(linears: Sequence[Linear]) -> list[tuple[Linear, slice, slice]]:
    """Each layer with a pair, its rows in the group's output, and its columns among the group's ranks."""
    blocks, row, column = [], 0, 0
    for linear in linears:
        rows = slice(row, row + linear.weight.shape[0])
        row = rows.stop
        if linear.pair:
            columns = slice(column, column + linear.pair.lora_a.shape[0])
            column = columns.stop
            blocks.append((linear, rows, columns))
    return blocks


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype, copy=True)
    else:
        parameter.grad += gradient
