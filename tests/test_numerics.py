"""The comparisons can fail: on NaN, on nothing, on shapes, on one wrong place; and they say where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.numerics import (
    alike,
    assert_as_exact,
    assert_close,
    assert_same_graph,
    finite,
    logit_gap,
    relative_difference,
)

LOGITS = np.random.default_rng(0).normal(0, 3, (7, 11))


def test_nan_infinity_and_nothing_are_refused() -> None:
    for bad in (np.array([0.0, np.nan]), np.array([np.inf]), np.array([]), torch.tensor([float("nan")])):
        with pytest.raises(AssertionError, match=r"finite|empty"):
            finite(bad)
    broken = LOGITS.copy()
    broken[2, 3] = np.nan
    for compare in (logit_gap, relative_difference, alike, assert_same_graph):
        for sides in ((broken, LOGITS), (LOGITS, broken)):
            with pytest.raises(AssertionError, match=r"not finite, the first at \(2, 3\)"):
                compare(*sides)


def test_other_shapes_are_refused_even_where_numpy_would_stretch_them() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        relative_difference(LOGITS[:1], LOGITS)


def test_kl_is_that_of_a_worked_example() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308 nats; a constant moves no logit."""
    gap = logit_gap(np.log([[3.0, 1.0]]) + 100, np.log([[1.0, 1.0]]))
    assert gap.kl == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-12)


def test_one_wrong_logit_is_found_and_named() -> None:
    wrong = LOGITS.copy()
    wrong[4, 5] += 2e-4 * LOGITS.std()
    with pytest.raises(AssertionError, match=r"worst at \(4, 5\).* 2 times the bound, seed 9"):
        assert_same_graph(LOGITS, wrong, seed=9)
    assert_same_graph(LOGITS, LOGITS + 0.9e-4 * LOGITS.std())


def test_the_relative_difference_is_of_norms() -> None:
    assert relative_difference([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    with pytest.raises(AssertionError, match="zero everywhere"):
        relative_difference([0.0], [0.0])
    with pytest.raises(AssertionError, match=r"dx: .*2 times the bound; worst at \(1,\): 4.5, expected 4; seed 3"):
        assert_close([3.0, 4.5], [3.0, 4.0], 0.05, "dx", seed=3)


def test_a_fast_version_may_err_twice_as_much_and_not_more() -> None:
    truth = torch.linspace(1, 2, 5000, dtype=torch.float64)
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3
    plain = (truth + noise).float()
    assert assert_as_exact((truth - 1.9 * noise).float(), plain, truth, "y") == pytest.approx(1.9, rel=1e-3)
    with pytest.raises(AssertionError, match="rms error"):
        assert_as_exact((truth - 2.1 * noise).float(), plain, truth, "y", seed=4)
    one_wrong = plain.clone()
    one_wrong[7] += 8 * noise.abs().max()
    with pytest.raises(AssertionError, match=r"y: _largest error.*worst at \(7,\).*seed 4"):
        assert_as_exact(one_wrong, plain, truth, "y", times=2, seed=4)


def test_one_rounding_is_no_fault_where_plain_pytorch_is_exact() -> None:
    truth = torch.tensor([1.0, 1.5], dtype=torch.float64)
    exact, next_to_it = truth.bfloat16(), torch.tensor([1.0, 1.5 + 2**-7], dtype=torch.bfloat16)
    assert_as_exact(exact, exact, truth, "y")
    with pytest.raises(AssertionError, match=r"plain PyTorch's 0\.000e\+00"):
        assert_as_exact(next_to_it, exact, truth, "y")


def test_alike_tells_direction_and_size() -> None:
    assert alike(2 * LOGITS, LOGITS) == pytest.approx((1.0, 2.0))
    assert alike(-LOGITS, LOGITS) == pytest.approx((-1.0, 1.0))
    with pytest.raises(AssertionError, match="zero everywhere"):
        alike(0 * LOGITS, LOGITS)
