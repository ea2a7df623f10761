"""The order of the examples is a pure function of (seed, epoch), and each step knows its own part."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.data.order import permutation, split_order, step_indices, steps_per_epoch

seeds = st.integers(0, 2**70)


@given(seeds, st.integers(0, 100), st.integers(0, 300))
def test_a_permutation_has_each_example_once(seed: int, epoch: int, n: int):
    assert sorted(permutation(seed, epoch, n)) == list(range(n))


@given(seeds, st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_the_steps_of_an_epoch_are_its_permutation_in_pieces(seed: int, n: int, batch_size: int, epoch: int):
    steps = steps_per_epoch(n, batch_size)
    pieces = [step_indices(seed, epoch * steps + step, n, batch_size) for step in range(steps)]
    assert np.concatenate(pieces).tolist() == permutation(seed, epoch, n).tolist()
    assert [len(piece) for piece in pieces[:-1]] == [batch_size] * (steps - 1)
    assert 1 <= len(pieces[-1]) <= batch_size


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(8, 4, 2), (9, 4, 3), (1, 4, 1), (4, 1, 4)])
def test_the_last_shorter_step_counts(n: int, batch_size: int, steps: int):
    assert steps_per_epoch(n, batch_size) == steps


def test_order_does_not_depend_on_what_was_asked_before_nor_on_the_batch_size():
    permutation.cache_clear()
    late = step_indices(3, 25, 10, 3).tolist()
    permutation.cache_clear()
    for step in range(25):
        step_indices(3, step, 10, 3)
    assert step_indices(3, 25, 10, 3).tolist() == late


def test_seeds_epochs_and_the_split_all_differ():
    orders = [permutation(0, 0, 50), permutation(0, 1, 50), permutation(1, 0, 50), permutation(2**32, 0, 50)]
    orders += [split_order(0, 50), split_order(1, 50)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_every_order_is_about_as_frequent_as_any_other():
    """24 orders of 4 over 2,400 epochs: chi-square with 23 degrees of freedom stays below its 99.99 % point, 58.6."""
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(permutation(11, epoch, 4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 58.6


def test_the_order_is_the_same_in_another_process_and_leaves_numpys_global_state_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    here = permutation(7, 2, 30).tolist()
    assert (np.random.get_state()[1] == before).all()
    code = "from gguflora.data.order import permutation; print(permutation(7, 2, 30).tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_an_order_that_others_share_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 5)[0] = 1
