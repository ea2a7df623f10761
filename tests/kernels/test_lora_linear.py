"""A linear layer with a pair is one with the merged matrix W + scale B A: the same values, the same gradients.

And layers that share an input are, in the explicit version, one product over stacked matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.lora_linear import explicit
from gguflora.kernels.lora_linear.explicit import Block, StackedPairs
from gguflora.kernels.lora_linear.reference import lora_linear
from tests.kernels.explicit_pair import Backward, blank, differentiable
from tests.kernels.random_inputs import normal, seeded, strided, widened
from tests.numerics import assert_as_exact, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

T, IN, OUT, RANK, SCALE = 7, 11, 13, 5, 2.5  # no two sizes equal, scale not 1: a wrong transpose or scale shows
ROUNDING = 1e-13  # float64 rounds at 1e-16; three products of a dozen terms


# --- one layer ---


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, W, bias, A, B."""
    return (
        strided(generator, T, IN),
        normal(generator, OUT, IN).detach(),
        normal(generator, OUT).detach(),
        normal(generator, RANK, IN),
        normal(generator, OUT, RANK),
    )


@pytest.mark.parametrize("with_bias", [False, True])
def test_it_equals_the_merged_layer(with_bias: bool) -> None:
    x, weight, bias, lora_a, lora_b = inputs(seeded(0))
    objective = normal(seeded(1), T, OUT).detach()
    y = lora_linear(x, weight, bias if with_bias else None, (lora_a, lora_b), SCALE)
    merged = x @ (weight + SCALE * lora_b @ lora_a).T + (bias if with_bias else 0)
    assert_close(y, merged, ROUNDING)
    ours = torch.autograd.grad((y * objective).sum(), [x, lora_a, lora_b])
    theirs = torch.autograd.grad((merged * objective).sum(), [x, lora_a, lora_b])
    for name, gradient, expected in zip(("dx", "dA", "dB"), ours, theirs, strict=True):
        assert_close(gradient, expected, ROUNDING, name)


def test_without_a_pair_it_is_the_base() -> None:
    x, weight, bias, _, _ = inputs(seeded(2))
    assert_close(lora_linear(x, weight, bias, None, SCALE), x @ weight.T + bias, ROUNDING)


def test_a_mask_is_on_what_the_pair_reads_alone() -> None:
    """The base reads x, the pair x times the mask: by the definition of LoRA's dropout."""
    x, weight, bias, lora_a, lora_b = inputs(seeded(6))
    mask = torch.rand(T, IN, generator=seeded(7), dtype=torch.float64).round() * 2
    y = lora_linear(x, weight, bias, (lora_a, lora_b), SCALE, mask)
    assert_close(y, x @ weight.T + bias + SCALE * (x * mask) @ lora_a.T @ lora_b.T, ROUNDING)


def test_its_gradients_are_right() -> None:
    x, weight, bias, lora_a, lora_b = inputs(seeded(3))
    assert gradcheck(lambda x, a, b: lora_linear(x, weight, bias, (a, b), SCALE), [x, lora_a, lora_b])


def test_a_zero_b_changes_no_bit_in_any_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, weight, bias, lora_a, lora_b = (tensor.detach().to(dtype) for tensor in inputs(seeded(4)))
        pair = (lora_a.float(), torch.zeros_like(lora_b, dtype=torch.float32))
        assert torch.equal(lora_linear(x, weight, bias, pair, SCALE), lora_linear(x, weight, bias, None, 0.0)), dtype


def test_a_float32_pair_gets_float32_gradients_in_a_bfloat16_layer() -> None:
    x, weight, bias, lora_a, lora_b = (tensor.detach().float() for tensor in inputs(seeded(5)))
    pair = (lora_a.requires_grad_(), lora_b.requires_grad_())
    y = lora_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), pair, SCALE)
    assert y.dtype is torch.bfloat16
    for gradient in torch.autograd.grad(y.float().square().sum(), pair):
        assert gradient.dtype is torch.float32


# --- layers that share an input, stacked ---

OUTS, RANKS = (13, 6, 8), (5, 0, 3)  # q, k and v, say; the second one has no pair
PAIRS = pytest.mark.parametrize("with_pairs", [False, True], ids=["base", "pairs"])
BIAS = pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
MASK = pytest.mark.parametrize("with_mask", [False, True], ids=["", "mask"])


@dataclass(frozen=True)
class Layers:
    """What the layers have of their own; `halves` are lora_a, lora_b of each pair, without the missing one's."""

    weights: list[Tensor]
    biases: list[Tensor] | None
    mask: Tensor | None

    def to(self, dtype: torch.dtype) -> Layers:
        """The same values in another dtype."""
        return Layers(
            [weight.to(dtype) for weight in self.weights],
            None if self.biases is None else [bias.to(dtype) for bias in self.biases],
            None if self.mask is None else self.mask.to(dtype),
        )


def layers(tokens: int, width: int, with_bias: bool, with_mask: bool, dtype: torch.dtype) -> Layers:
    generator = seeded(10)
    weights = [normal(generator, out, width, deviation=width**-0.5).detach() for out in OUTS]
    biases = [normal(generator, out).detach() for out in OUTS]
    mask = (torch.rand(tokens, width, generator=generator, dtype=torch.float64) > 0.25) / 0.75
    return Layers(weights, biases if with_bias else None, mask if with_mask else None).to(dtype)


def leaves(tokens: int, width: int, with_pairs: bool, dtype: torch.dtype) -> list[Tensor]:
    """x, and each pair's lora_a and lora_b, which are float32 at least."""
    generator, wide = seeded(11), torch.promote_types(dtype, torch.float32)
    x = normal(generator, tokens, width, dtype=dtype)
    halves = []
    for out, rank in zip(OUTS, RANKS, strict=True):
        if with_pairs and rank:
            halves.append(normal(generator, rank, width, dtype=wide, deviation=width**-0.5))
            halves.append(normal(generator, out, rank, dtype=wide, deviation=0.3))
    return [x, *halves]


def each_by_itself(given: Layers, x: Tensor, *halves: Tensor) -> Tensor:
    """The reference, layer by layer: (T, sum of OUTS)."""
    rest = list(halves)
    results = []
    for index, (weight, rank) in enumerate(zip(given.weights, RANKS, strict=True)):
        bias = given.biases[index] if given.biases else None
        pair = (rest.pop(0), rest.pop(0)) if rest and rank else None
        results.append(lora_linear(x, weight, bias, pair, SCALE, given.mask))
    return torch.cat(results, 1)


def stacked(given: Layers, x: Tensor, *halves: Tensor) -> Tensor:
    """The explicit version of the same; A and B are stacked as its description says."""

    def forward(x: Tensor, *halves: Tensor) -> tuple[Tensor, Backward]:
        pairs = None
        if halves:
            first = Block(halves[1].to(x.dtype), slice(0, OUTS[0]), slice(0, RANKS[0]))
            last = Block(halves[3].to(x.dtype), slice(-OUTS[2], None), slice(-RANKS[2], None))
            pairs = StackedPairs(torch.cat([halves[0], halves[2]]).to(x.dtype), (first, last), SCALE)
        weight = torch.cat(given.weights)
        y = blank(len(x), sum(OUTS), dtype=x.dtype)
        c = blank(len(x), sum(RANKS), dtype=x.dtype) if pairs else None
        explicit.forward(x, weight, torch.cat(given.biases) if given.biases else None, pairs, y, c, given.mask)

        def backward(dy: Tensor) -> tuple[Tensor, ...]:
            dx = blank(*x.shape, dtype=x.dtype)
            delta = explicit.backward(dy, c, weight, pairs, dx, given.mask)
            if delta is None:
                return (dx,)
            da = explicit.a_gradient(delta, x)
            parts = (da[: RANKS[0]], delta.db[0], da[-RANKS[2] :], delta.db[1])
            return dx, *(part.to(half.dtype) for part, half in zip(parts, halves, strict=True))

        return y, backward

    return differentiable(forward, x, *halves)


def values_and_gradients(version: object, given: Layers, moved: list[Tensor], objective: Tensor) -> list[Tensor]:
    assert callable(version)
    y = version(given, *moved)
    return [y, *torch.autograd.grad((y * objective.to(y.dtype)).sum(), moved)]


NAMES = ("y", "dx", "dA 0", "dB 0", "dA 2", "dB 2")


@PAIRS
@BIAS
@MASK
def test_stacked_layers_give_what_each_gives_by_itself(with_pairs: bool, with_bias: bool, with_mask: bool) -> None:
    dtype = torch.float64
    given, moved = layers(T, IN, with_bias, with_mask, dtype), leaves(T, IN, with_pairs, dtype)
    objective = normal(seeded(12), T, sum(OUTS)).detach()
    sides = (values_and_gradients(version, given, moved, objective) for version in (stacked, each_by_itself))
    for name, ours, theirs in zip(NAMES, *sides, strict=False):
        assert_close(ours, theirs, ROUNDING, name)


@PAIRS
@MASK
def test_the_gradients_of_stacked_layers_are_right(with_pairs: bool, with_mask: bool) -> None:
    given, moved = layers(3, 4, True, with_mask, torch.float64), leaves(3, 4, with_pairs, torch.float64)
    assert gradcheck(lambda *moved: stacked(given, *moved), moved)


@PAIRS
@MASK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_layers_err_at_most_twice_as_much_as_plain_pytorch(
    with_pairs: bool, with_mask: bool, dtype: torch.dtype
) -> None:
    tokens, width = 80, 48
    given, moved = layers(tokens, width, True, with_mask, dtype), leaves(tokens, width, with_pairs, dtype)
    objective = normal(seeded(12), tokens, sum(OUTS), dtype=dtype).detach()
    sides = (
        values_and_gradients(stacked, given, moved, objective),
        values_and_gradients(each_by_itself, given, moved, objective),
        values_and_gradients(each_by_itself, given.to(torch.float64), widened(*moved), objective),
    )
    for name, fast, plain, exact in zip(NAMES, *sides, strict=False):
        print(f"{name} {dtype}: {assert_as_exact(fast, plain, exact, name):.2f} times plain PyTorch's error")


@MASK
@BIAS
@pytest.mark.parametrize("version", [each_by_itself, stacked])
def test_bfloat16_keeps_what_a_young_pair_adds(
    version: Callable[..., Tensor], with_bias: bool, with_mask: bool
) -> None:
    """A pair after its first update adds less than half a unit in y's last place: on the average all of it must arrive.

    Rounding a sum once is right on the average; rounding x W^T first and adding the pair's product to that gives x W^T
    back, and nothing of the pair.
    """
    given, (x, *halves) = layers(400, 64, with_bias, with_mask, torch.bfloat16), leaves(400, 64, True, torch.bfloat16)
    small = [half.detach() * (1e-3 if index % 2 else 1) for index, half in enumerate(halves)]
    zero = [half * (0 if index % 2 else 1) for index, half in enumerate(small)]
    wide, exact = given.to(torch.float64), [tensor.detach().double() for tensor in (x, *small)]
    with torch.no_grad():
        expected = each_by_itself(wide, *exact) - each_by_itself(wide, *widened(x, *zero))
        added = version(given, x, *small).double() - version(given, x, *zero).double()
        arrived = float((added * expected).sum() / expected.square().sum())
    assert abs(arrived - 1) < 0.15, f"{arrived:.2f} of the pair's product arrived"  # the noise of 10,800 roundings
