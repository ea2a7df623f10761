"""The learning rate at the steps that matter, computed by hand."""

from __future__ import annotations

import math

import pytest

from gguflora.config import Schedule
from gguflora.train.schedule import learning_rate, warmup_steps

PEAK = 4e-4
TOTAL, WARMUP = 100, 10

# Step 55 is 44/90 on the way from step 11 to the end; step 100, the last, is 89/90.
COSINE_55 = PEAK * (1 + math.cos(math.radians(88))) / 2
COSINE_100 = PEAK * math.sin(math.radians(1)) ** 2  # (1 + cos 178 deg) / 2 = sin^2 1 deg


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 1, PEAK / 10),
        ("cosine", 5, PEAK / 2),
        ("cosine", 10, PEAK),
        ("cosine", 11, PEAK),
        ("cosine", 55, COSINE_55),
        ("cosine", 56, PEAK / 2),
        ("cosine", 100, COSINE_100),
        ("linear", 1, PEAK / 10),
        ("linear", 10, PEAK),
        ("linear", 11, PEAK),
        ("linear", 56, PEAK / 2),
        ("linear", 100, PEAK / 90),
        ("constant", 1, PEAK / 10),
        ("constant", 10, PEAK),
        ("constant", 11, PEAK),
        ("constant", 100, PEAK),
    ],
)
def test_pinned_values(schedule: Schedule, step: int, expected: float) -> None:
    assert learning_rate(step, TOTAL, WARMUP, PEAK, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(schedule: Schedule) -> None:
    assert learning_rate(1, TOTAL, 0, PEAK, schedule) == PEAK


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5), (5, 8), (97, 3)])
def test_every_step_has_a_rate_above_zero_that_never_exceeds_the_peak(
    schedule: Schedule, total: int, warmup: int
) -> None:
    """Also in runs that end inside their warm-up; a step of rate 0 would be a step for nothing."""
    rates = [learning_rate(step, total, warmup, PEAK, schedule) for step in range(1, total + 1)]
    assert all(0 < rate <= PEAK for rate in rates)
    turn = min(warmup, total)
    assert rates[:turn] == sorted(rates[:turn])
    assert rates[turn:] == sorted(rates[turn:], reverse=True)


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [(None, 1, 1), (None, 33, 1), (None, 34, 2), (None, 1000, 30), (None, 5000, 100), (0, 1000, 0), (7, 3, 7)],
)
def test_warm_up_is_3_percent_and_at_most_100_unless_given(given: int | None, total: int, expected: int) -> None:
    assert warmup_steps(given, total) == expected
