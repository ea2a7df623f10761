"""Rope turns each pair of elements by position * theta, in both layouts: held to multiplication by e^(i angle)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.rope.reference import rotate
from tests.kernels.random_inputs import normal, seeded, strided
from tests.numerics import Floats, assert_close

TOKENS, HEADS, DIM = 5, 3, 10
ROUNDING = 1e-14  # float64 rounds at 1e-16; an element is two products


def angles(offset: int = 0) -> tuple[Tensor, Tensor]:
    turns = (offset + torch.arange(TOKENS, dtype=torch.float64))[:, None] * 500.0 ** -(
        torch.arange(0, DIM, 2, dtype=torch.float64) / DIM
    )
    return turns.cos(), turns.sin()


def turned_as_complex_numbers(x: Floats, half_split: bool) -> Floats:
    """Pair (a, b) is a + ib, which e^(i angle) turns."""
    turns = np.arange(TOKENS)[:, None, None] * 500.0 ** -(np.arange(0, DIM, 2) / DIM)
    pairs = [(i, i + DIM // 2) for i in range(DIM // 2)] if half_split else [(i, i + 1) for i in range(0, DIM, 2)]
    first, second = map(list, zip(*pairs, strict=True))
    z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * turns)
    result = np.empty_like(x)
    result[..., first], result[..., second] = z.real, z.imag
    return result


@pytest.mark.parametrize("half_split", [False, True])
def test_each_pair_turns_as_a_complex_number(half_split: bool) -> None:
    x = normal(seeded(0), TOKENS, HEADS, DIM).detach()
    expected = turned_as_complex_numbers(x.numpy(), half_split)
    assert_close(rotate(x, *angles(), half_split), expected, ROUNDING)


@pytest.mark.parametrize("half_split", [False, True])
def test_scores_depend_on_the_distance_alone(half_split: bool) -> None:
    generator = seeded(1)
    q, k = (normal(generator, TOKENS, 1, DIM).detach() for _ in "qk")
    near, far = (
        rotate(q, *angles(offset), half_split)[:, 0] @ rotate(k, *angles(offset), half_split)[:, 0].T
        for offset in (0, 1000)
    )
    assert_close(far, near, 1e-12)  # an angle of 1,000 radians is rounded at 1e-13


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    """The product is made in float32: the result is the float64 one rounded, not a product of rounded angles."""
    x = normal(seeded(2), TOKENS, HEADS, DIM, dtype=torch.bfloat16).detach()
    cos, sin = angles()
    exact = rotate(x.double(), cos, sin, False)
    result = rotate(x, cos.float(), sin.float(), False)
    assert result.dtype is torch.bfloat16
    half_step = exact.abs() * 2.0**-8 * 1.01 + 1e-7  # bfloat16 has 8 bits; float32's own error comes on top
    assert ((result.double() - exact).abs() <= half_step).all()


@pytest.mark.parametrize("half_split", [False, True])
def test_its_gradient_is_right_also_for_strided_heads(half_split: bool) -> None:
    assert gradcheck(lambda x: rotate(x, *angles(), half_split), [strided(seeded(3), TOKENS, 2, DIM)])
