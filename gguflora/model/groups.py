"""Linear layers that read the same input, as one product: q/k/v, gate/up, and groups of one.

Their pairs are stacked for the product (kernels/lora_linear/explicit.py), and gradients are taken apart again here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.kernels.lora_linear.explicit import Block, PairDelta, StackedPairs
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


@dataclass(frozen=True)
class SavedPairs:
    """What the backward of a group's pairs reads: the pairs as they were, and c (T, R) = s (m x) A^T."""

    stacked: StackedPairs
    c: Tensor


def forward(
    group: Group, x: Tensor, dropout: Dropout | None, work: Workspace, name: str, y: Tensor
) -> SavedPairs | None:
    """Write y (T, O) for x (T, in); gives what the pairs keep, c in the buffer `name`, or None without pairs."""
    pairs = stack_pairs(group, x.dtype)
    c = None if pairs is None else work.take(name, (x.shape[0], pairs.a.shape[0]), x.dtype)
    linear = work.operations.lora_linear
    linear.forward(x, work.dense(group.weight), _stack_bias(group, x.dtype), pairs, y, c, _mask(group, dropout, x))
    return None if pairs is None or c is None else SavedPairs(pairs, c)


def backward(
    group: Group, dy: Tensor, saved: SavedPairs | None, dropout: Dropout | None, work: Workspace, dx: Tensor
) -> PairDelta | None:
    """Write dx (T, in) for dy (T, O); gives what `add_pair_gradients` needs of it, None without pairs."""
    weight, linear = work.dense(group.weight), work.operations.lora_linear
    if saved is None:
        return linear.backward(dy, None, weight, None, dx)
    return linear.backward(dy, saved.c, weight, saved.stacked, dx, _mask(group, dropout, dx))


def add_pair_gradients(group: Group, x: Tensor, delta: PairDelta | None, work: Workspace) -> None:
    """Add to the gradients of a group's pairs, for the input x (T, in); without pairs there are none."""
    if delta is not None:
        add_gradients(group, work.operations.lora_linear.a_gradient(delta, x), delta.db)


def stack_pairs(group: Group, dtype: torch.dtype) -> StackedPairs | None:
    """The pairs of a group in the compute dtype: A (R, in), and each lora_b with its place; None without any."""
    pairs = [layer.pair for layer in group.linears if layer.pair]
    if not pairs:
        return None
    a = torch.cat([pair.lora_a.detach() for pair in pairs]).to(dtype)
    return StackedPairs(a, tuple(_blocks(group, dtype)), group.linears[0].scale)


def add_gradients(group: Group, da: Tensor, db: Sequence[Tensor]) -> None:
    """Add dA (R, in) of a group, and dB (o, r) of each of its pairs, to the pairs' own gradients."""
    pairs = [layer.pair for layer in group.linears if layer.pair]
    ranks = [len(pair.lora_a) for pair in pairs]
    for pair, da_part, db_part in zip(pairs, torch.split(da, ranks), db, strict=True):
        _add(pair.lora_a, da_part)
        _add(pair.lora_b, db_part)


def _blocks(group: Group, dtype: torch.dtype) -> Iterator[Block]:
    row = column = 0
    for layer in group.linears:
        rows = slice(row, row + layer.weight.shape[0])
        row = rows.stop
        if layer.pair:
            columns = slice(column, column + layer.pair.lora_a.shape[0])
            column = columns.stop
            yield Block(layer.pair.lora_b.detach().to(dtype), rows, columns)


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
        # laid out as the parameter is, not as what came (dB comes as a transpose)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad += gradient
