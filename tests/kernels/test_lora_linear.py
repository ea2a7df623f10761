"""A linear layer with a pair is one with the merged matrix W + scale B A: the same values, the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.lora_linear.reference import lora_linear
from tests.kernels.random_inputs import normal, seeded, strided
from tests.numerics import assert_close

T, IN, OUT, RANK, SCALE = 7, 11, 13, 5, 2.5  # no two sizes equal, scale not 1: a wrong transpose or scale shows
ROUNDING = 1e-13  # float64 rounds at 1e-16; three products of a dozen terms


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
