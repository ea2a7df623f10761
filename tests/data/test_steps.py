"""Which examples a step trains is known before the run begins, whether steps are made of examples or of tokens."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.config import TrainingConfig
from gguflora.data import steps
from gguflora.data.order import permutation, step_indices
from gguflora.data.packing import fewest
from gguflora.data.steps import plan_steps, token_steps

GSM8K = Path(__file__).parents[2] / "benchmarks" / "data" / "gsm8k_512.jsonl"

all_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=60)
limits = st.integers(1, 150)
seeds = st.integers(0, 2**70)


def by_tokens(lengths: list[int], batch_tokens: int, seed: int = 0, epochs: int = 3, max_steps: int | None = None):
    return plan_steps(lengths, TrainingConfig(batch_tokens=batch_tokens, seed=seed, epochs=epochs, max_steps=max_steps))


@given(all_lengths, limits, seeds)
def test_every_example_is_trained_once_in_every_epoch(lengths: list[int], most: int, seed: int) -> None:
    plan = by_tokens(lengths, most, seed)
    start = 0
    for end in plan.ends:
        trained = np.concatenate([plan.examples(step) for step in range(start, end)])
        assert sorted(trained) == list(range(len(lengths)))
        start = end
    assert start == plan.total


@given(all_lengths, limits, seeds)
def test_no_step_has_more_tokens_than_asked_for_but_a_single_longer_example(
    lengths: list[int], most: int, seed: int
) -> None:
    plan = by_tokens(lengths, most, seed)
    for step in range(plan.total):
        examples = plan.examples(step)
        assert len(examples) == 1 or sum(lengths[example] for example in examples) <= most


@given(all_lengths, limits, seeds)
def test_a_step_follows_the_order_but_for_the_few_examples_that_fill_its_end(
    lengths: list[int], most: int, seed: int
) -> None:
    """It begins with the first that was not trained yet, and takes none before which many wait."""
    plan = by_tokens(lengths, most, seed, epochs=1)
    order = permutation(seed, 0, len(lengths)).tolist()
    for step in range(plan.total):
        examples = plan.examples(step).tolist()
        assert examples[0] == order[0]
        for example in examples:
            assert order.index(example) < steps.WINDOW
            order.remove(example)
    assert order == []


@given(all_lengths, limits, seeds, st.randoms(use_true_random=False))
def test_a_step_does_not_depend_on_which_were_asked_for_before(lengths, most, seed, random) -> None:
    """So a resumed run trains what the interrupted one would have."""
    plan, again = by_tokens(lengths, most, seed), by_tokens(lengths, most, seed)
    in_order = [plan.examples(step).tolist() for step in range(plan.total)]
    anyhow = list(range(plan.total))
    random.shuffle(anyhow)
    assert {step: again.examples(step).tolist() for step in anyhow} == dict(enumerate(in_order))


def test_steps_by_hand() -> None:
    """At most 10. 6, then of 7 3 3 12 2 what fills 4: 3. Then 7 and the other 3; 12 alone, too long for any; 2."""
    lengths = [6, 7, 3, 3, 12, 2]
    assert [step.tolist() for step in token_steps(range(6), lengths, 10)] == [[0, 2], [1, 3], [4], [5]]
    assert [step.tolist() for step in token_steps([5, 4, 3], lengths, 10)] == [[5, 3], [4]]
    # 5 and 4 come next and leave a gap of 1 in 20; 5, 3 and 2 leave none.
    assert token_steps(range(5), [10, 5, 4, 3, 2], 20)[0].tolist() == [0, 1, 3, 4]


def test_windows_as_long_as_rows_fill_them() -> None:
    """What is left free elsewhere, so that rows need not come out even, must not keep out what fills a row exactly."""
    lengths = [2048] * 7 + [1000, 1000]
    for step in token_steps(range(9), lengths, 4096)[:3]:
        assert [lengths[example] for example in step] == [2048, 2048]


def test_only_the_next_sixteen_are_looked_at() -> None:
    near = token_steps(range(17), [9] * 16 + [1], 10)
    far = token_steps(range(18), [9] * 17 + [1], 10)
    assert near[0].tolist() == [0, 16]
    assert far[0].tolist() == [0]


def test_examples_make_the_steps_that_they_always_made() -> None:
    plan = plan_steps([1] * 10, TrainingConfig(batch_size=4, epochs=2, seed=5))
    assert list(plan.ends) == [3, 6]
    assert plan.total == 6
    for step in range(6):
        assert plan.examples(step).tolist() == step_indices(5, step, 10, 4).tolist()


@pytest.mark.parametrize("config", [TrainingConfig(batch_size=2, epochs=3), TrainingConfig(batch_tokens=20, epochs=3)])
def test_epochs_are_told_from_the_steps_made(config: TrainingConfig) -> None:
    """Six examples of 10 tokens, two a step: three steps an epoch."""
    plan = plan_steps([10] * 6, config)
    assert [plan.epoch(step) for step in range(10)] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [step for step in range(10) if plan.is_end(step)] == [3, 6, 9]


def test_epochs_may_differ_in_their_steps() -> None:
    """The total, which the learning rate's schedule ends with, counts each as it is."""
    lengths = (np.arange(40) * 7919 % 50 + 1).tolist()
    counts = set()
    plan = by_tokens(lengths, 64, epochs=30)
    for epoch, end in enumerate(plan.ends):
        order = permutation(0, epoch, 40).tolist()
        count = end - (plan.ends[epoch - 1] if epoch else 0)
        assert count == len(token_steps(order, lengths, 64))
        counts.add(count)
    assert len(counts) > 1  # else this shows nothing
    assert plan.total == plan.ends[-1]


def test_max_steps_ends_the_plan() -> None:
    plan = by_tokens([10] * 6, 20, epochs=10**9, max_steps=7)
    assert list(plan.ends) == [3, 6, 9]
    assert plan.total == 7
    assert plan_steps([10] * 6, TrainingConfig(batch_size=2, epochs=10**9, max_steps=7)).total == 7


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_rows_are_full_on_real_lengths(rows: int) -> None:
    """A token is about 4.5 characters of these texts; the last step of the epoch is what it is."""
    texts = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    lengths = [20 + len(json.dumps(text)) * 2 // 9 for text in texts]
    room = 2048
    plan = by_tokens(lengths, rows * room, epochs=1)
    laid = used = 0
    for step in range(plan.total - 1):
        step_lengths = [lengths[example] for example in plan.examples(step)]
        laid += len(fewest(step_lengths, room))
        used += sum(step_lengths)
    assert used >= 0.97 * laid * room
    assert laid == rows * (plan.total - 1)  # not one step needs a row more


def test_the_worked_example_is_true() -> None:
    results = doctest.testmod(steps)
    assert (results.failed, results.attempted) == (0, 1)
