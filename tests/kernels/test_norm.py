"""RMS norm is its formula, and its gradient is the formula's."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

from gguflora.kernels.norm.reference import rms_norm
from tests.kernels.random_inputs import normal, seeded, strided
from tests.numerics import assert_close

EPSILON = 1e-3
ROUNDING = 1e-14  # float64 rounds at 1e-16; a row adds up a few dozen terms


def test_a_row_is_divided_by_its_root_mean_square() -> None:
    """By hand: the mean square of (3, 1) is 5, with epsilon 4 it is 9, so each is divided by 3."""
    x, weight = torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([1.0, 6.0], dtype=torch.float64)
    assert_close(rms_norm(x, weight, 4.0), torch.tensor([[1.0, 2.0]]), ROUNDING)


def test_it_is_torchs_rms_norm_where_epsilon_matters_and_where_not() -> None:
    generator = seeded(0)
    x, weight = normal(generator, 7, 48), normal(generator, 48)
    x = x * torch.logspace(-3, 1, 7, dtype=torch.float64)[:, None]
    assert x.square().mean(-1).min() < EPSILON < x.square().mean(-1).max()
    expected = torch.nn.functional.rms_norm(x, (48,), weight, EPSILON)
    for actual, row in zip(rms_norm(x, weight, EPSILON), expected, strict=True):
        assert_close(actual, row, ROUNDING)


def test_its_gradient_is_right_also_for_strided_rows() -> None:
    generator = seeded(1)
    x, weight = strided(generator, 3, 5), normal(generator, 5).detach()
    assert gradcheck(lambda x: rms_norm(x, weight, EPSILON), [x])
