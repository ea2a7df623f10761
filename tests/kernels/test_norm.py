"""RMS norm is its formula, and its gradient is the formula's; the explicit version rounds no worse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.norm import explicit
from gguflora.kernels.norm.reference import rms_norm
from tests.kernels.explicit_pair import Backward, blank, differentiable
from tests.kernels.random_inputs import normal, seeded, strided, widened
from tests.numerics import assert_as_exact, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = 1e-3
ROUNDING = 1e-14  # float64 rounds at 1e-16; a row adds up a few dozen terms

Norm = Callable[[Tensor, Tensor, float], Tensor]


def explicit_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype | None = None) -> Tensor:
    """The explicit version with the reference's arguments; the result in `dtype`, if not in x's own."""

    def forward(x: Tensor) -> tuple[Tensor, Backward]:
        y, r = blank(*x.shape, dtype=dtype or x.dtype), blank(len(x), 1, dtype=x.dtype)
        explicit.forward(x, weight, epsilon, y, r)

        def backward(dy: Tensor) -> tuple[Tensor]:
            dx = blank(*x.shape, dtype=x.dtype)
            explicit.backward(dy, x, weight, r, dx)
            return (dx,)

        return y, backward

    return differentiable(forward, x)


VERSIONS = pytest.mark.parametrize("norm", [rms_norm, explicit_norm])


@VERSIONS
def test_a_row_is_divided_by_its_root_mean_square(norm: Norm) -> None:
    """By hand: the mean square of (3, 1) is 5, with epsilon 4 it is 9, so each is divided by 3."""
    x, weight = torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([1.0, 6.0], dtype=torch.float64)
    assert_close(norm(x, weight, 4.0), torch.tensor([[1.0, 2.0]]), ROUNDING)


def rows_around_epsilon(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (7, 48), whose rows' mean squares lie on both sides of epsilon, and a weight (48,)."""
    generator = seeded(0)
    x = normal(generator, 7, 48, dtype=dtype) * torch.logspace(-3, 1, 7, dtype=dtype)[:, None]
    assert x.square().mean(-1).min() < EPSILON < x.square().mean(-1).max()
    return x.detach().requires_grad_(), normal(generator, 48, dtype=dtype).detach()


@VERSIONS
def test_it_is_torchs_rms_norm_where_epsilon_matters_and_where_not(norm: Norm) -> None:
    x, weight = rows_around_epsilon(torch.float64)
    expected = torch.nn.functional.rms_norm(x, (48,), weight, EPSILON)
    objective = normal(seeded(1), 7, 48).detach()
    y = norm(x, weight, EPSILON)
    [ours], [theirs] = (torch.autograd.grad((side * objective).sum(), [x]) for side in (y, expected))
    for row in range(len(x)):  # each by itself: the largest would hide the smallest
        assert_close(y[row], expected[row], ROUNDING)
        assert_close(ours[row], theirs[row], 1e-13)  # of a difference of two such sums


@VERSIONS
def test_its_gradient_is_right_also_for_strided_rows(norm: Norm) -> None:
    generator = seeded(1)
    x, weight = strided(generator, 3, 5), normal(generator, 5).detach()
    assert gradcheck(lambda x: norm(x, weight, EPSILON), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_explicit_version_errs_at_most_twice_as_much_as_plain_pytorch(dtype: torch.dtype) -> None:
    """The residual is float32; the result, and the gradient that comes back, are in the compute dtype."""
    x, weight = rows_around_epsilon(torch.float32)
    [wide], wide_weight = widened(x), weight.double()
    objective = normal(seeded(2), 7, 48, dtype=dtype).detach()
    sides = []
    for leaf, y in (
        (x, explicit_norm(x, weight, EPSILON, dtype)),
        (x, rms_norm(x, weight, EPSILON).to(dtype)),
        (wide, rms_norm(wide, wide_weight, EPSILON)),
    ):
        sides.append([y, *torch.autograd.grad((y * objective.to(y.dtype)).sum(), [leaf])])
    for name, fast, plain, exact in zip(("y", "dx"), *sides, strict=True):
        print(f"{name} {dtype}: {assert_as_exact(fast, plain, exact, name):.2f} times plain PyTorch's error")


def test_from_a_known_factor_it_gives_the_same_bits_again() -> None:
    x, weight = rows_around_epsilon(torch.float32)
    y, again, r = (blank(7, width, dtype=torch.float32) for width in (48, 48, 1))
    explicit.forward(x.detach(), weight, EPSILON, y, r)
    explicit.apply(x.detach(), weight, r, again)
    assert torch.equal(y, again)
