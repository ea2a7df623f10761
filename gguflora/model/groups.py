"""Linear layers that read the same input, as one product: q/k/v, gate/up, and groups of one.

Their pairs are stacked for the product (kernels/lora_linear/explicit.py), and gradients are taken apart again here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.kernels.lora_linear import explicit as linear
from gguflora.kernels.lora_linear.explicit import StackedPairs
from gguflora.model.dropout import Dropout, mask_of
from gguflora.model.linear import Linear
from gguflora.model.weight import Weight
from gguflora.model.workspace import Workspace


@dataclass(frozen=True)
class Group:
    """Layers that share an input.

    Attributes:
        weight: (O, in), the layers' weights under each other.
    """

    linears: tuple[Linear, ...]
    weight: Weight


def single(layer: Linear) -> Group:
    """A group of one."""
    return Group((layer,), layer.weight)


def forward(group: Group, x: Tensor, dropout: Dropout | None, work: Workspace, name: str, y: Tensor) -> Tensor | None:
    """Write y (T, O) for x (T, in); gives the pairs' inner product c (T, R) in the buffer `name`, None without."""
    pairs = stack_pairs(group, x.dtype)
    c = None if pairs is None else work.take(name, (x.shape[0], pairs.a.shape[0]), x.dtype)
    linear.forward(x, work.dense(group.weight), _stack_bias(group, x.dtype), pairs, y, c, _mask(group, dropout, x))
    return c


def backward(
    group: Group, dy: Tensor, x: Tensor, c: Tensor | None, dropout: Dropout | None, work: Workspace, dx: Tensor
) -> None:
    """Write dx (T, in) for dy (T, O), and add to the pairs' gradients."""
    pairs = stack_pairs(group, x.dtype)
    mask = _mask(group, dropout, x)
    gradients = linear.backward(dy, x, c, work.dense(group.weight), pairs, dx, mask)
    if gradients:
        add_gradients(group, *gradients)


def stack_pairs(group: Group, dtype: torch.dtype) -> StackedPairs | None:
    """The pairs of a group: A (R, in), B (O, R) with a block for each pair; None without any."""
    blocks = list(_blocks(group))
    if not blocks:
        return None
    a = torch.cat([block.lora_a.detach() for block in blocks]).to(dtype)
    b = a.new_zeros(group.weight.shape[0], a.shape[0])
    for block in blocks:
        b[block.rows, block.columns] = block.lora_b.detach().to(dtype)
    return StackedPairs(a, b, group.linears[0].scale)


def add_gradients(group: Group, da: Tensor, db: Tensor) -> None:
    """Add dA (R, in) and dB (O, R) of a group to its pairs' own gradients."""
    for block in _blocks(group):
        _add(block.lora_a, da[block.columns])
        _add(block.lora_b, db[block.rows, block.columns])


@dataclass(frozen=True)
class _Block:
    """A pair's place: its layer's rows in the group's output, its own columns among the group's ranks."""

    lora_a: Tensor
    lora_b: Tensor
    rows: slice
    columns: slice


def _blocks(group: Group) -> Iterator[_Block]:
    row = column = 0
    for layer in group.linears:
        rows = slice(row, row + layer.weight.shape[0])
        row = rows.stop
        if layer.pair:
            columns = slice(column, column + layer.pair.lora_a.shape[0])
            column = columns.stop
            yield _Block(layer.pair.lora_a, layer.pair.lora_b, rows, columns)


def _mask(group: Group, dropout: Dropout | None, x: Tensor) -> Tensor | None:
    return mask_of(dropout, group.linears[0].name, x)


def _stack_bias(group: Group, dtype: torch.dtype) -> Tensor | None:
    """The group's bias (O,), zero for layers without; None if none has one."""
    if all(layer.bias is None for layer in group.linears):
        return None
    zeros = (torch.zeros(layer.weight.shape[0], dtype=dtype) for layer in group.linears)
    return torch.cat(
        [zero if layer.bias is None else layer.bias for layer, zero in zip(group.linears, zeros, strict=True)]
    )


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype, copy=True)
    else:
        parameter.grad += gradient
