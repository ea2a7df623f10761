"""The setting that is chosen is the first that fits, in a fixed order, and never one that was not left open."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gguflora.config import ComputeConfig
from gguflora.errors import UsageError
from gguflora.run.fitting import fit, settings, too_little
from gguflora.run.memory_plan import Load, MemoryPlan, Setting, row_tokens

MB = 10**6
OPEN = ComputeConfig()
FIRST = Setting(torch.float32, packed=False, rows=2048, recompute=False)
LOAD = Load(ranks={"blk.0.attn_q.weight": 16}, step=4096, longest=400)


def planned(load: Load, setting: Setting) -> MemoryPlan:
    """A planner whose sums are easily done by hand, in MB: 100 of weights, 1 a token, 10 a rank."""
    weights = 20 if setting.packed else 100
    activations = row_tokens(load, setting.rows) // (4 if setting.recompute else 1)
    parts = {"weights": weights, "activations": activations, "adapter": 10 * max(load.ranks.values())}
    return MemoryPlan({name: size * MB for name, size in parts.items()}, 0)


def chosen(limit: int, compute: ComputeConfig = OPEN) -> tuple[int, bool, bool]:
    first = replace(FIRST, rows=compute.micro_batch_tokens or 2048, packed=compute.weights == "packed")
    found = fit(first, compute, LOAD, planned, limit * MB)
    assert found.fits is (found.plan.peak <= limit * MB)
    return found.setting.rows, found.setting.packed, found.setting.recompute


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (2308, (2048, False, False)),  # 100 + 2048 + 160
        (2307, (2048, True, False)),
        (2228, (2048, True, False)),
        (2227, (1024, True, False)),
        (1204, (1024, True, False)),
        (1203, (512, True, False)),
        (692, (512, True, False)),
        (691, (512, True, True)),
        (308, (512, True, True)),
        (307, (512, True, True)),  # nothing fits: the smallest
    ],
)
def test_weights_stay_packed_first_then_rows_are_shortened_then_layers_run_again(
    limit: int, expected: tuple[int, bool, bool]
):
    assert chosen(limit) == expected


def test_what_was_asked_for_stays():
    assert chosen(1, ComputeConfig(micro_batch_tokens=1500)) == (1500, True, True)
    assert chosen(1, ComputeConfig(weights="resident")) == (512, False, True)
    assert chosen(1, ComputeConfig(recompute="off")) == (512, True, False)
    assert chosen(1, ComputeConfig(micro_batch_tokens=1500, weights="resident", recompute="off")) == (
        1500,
        False,
        False,
    )
    assert chosen(10_000, ComputeConfig(weights="packed")) == (2048, True, False)


def test_shorter_rows_that_save_nothing_are_passed_over():
    assert [setting.rows for setting in settings(FIRST, OPEN, replace(LOAD, longest=1500))] == [
        2048,
        2048,  # packed
        1024,  # rows that hold one example of 1,500
        1024,
    ]
    alone = replace(LOAD, longest=3000)
    assert {setting.rows for setting in settings(FIRST, OPEN, alone)} == {2048}
    small_steps = replace(LOAD, step=800, longest=200)
    assert [setting.rows for setting in settings(FIRST, OPEN, small_steps)] == [2048, 2048, 512, 512]


def test_without_data_a_row_is_full_and_an_example_no_longer():
    assert row_tokens(Load({}, 2**40, None), 512) == 512
    assert row_tokens(Load({}, 600, None), 1024) == 600


def test_what_does_not_fit_is_told_with_what_would():
    """The smallest takes 20 + 128 + 160; a rank of 8 takes 80 less, rows of 64 tokens take 16 in place of 128."""
    found = fit(FIRST, OPEN, LOAD, planned, 230 * MB)
    error = too_little("230MB", 230 * MB, LOAD, planned, found)
    assert isinstance(error, UsageError)
    assert str(error) == (
        "--memory 230MB is too little: the smallest setting (rows of at most 512 tokens, packed weights, layers "
        "computed again) needs 308 MB at its peak; give --memory 310MB or --rank 8 or --max-length 128 "
        "--micro-batch-tokens 128."
    )


def test_where_no_option_helps_there_is_only_more_memory():
    found = fit(FIRST, OPEN, LOAD, planned, 5 * MB)
    assert str(too_little("5MB", 5 * MB, LOAD, planned, found)).endswith("; give --memory 310MB.")


def test_where_an_example_makes_the_row_both_must_become_shorter():
    """An example of 2,048 tokens makes the row whatever its limit; cut, it does not, and the limit counts."""
    load = replace(LOAD, longest=2048)
    found = fit(FIRST, OPEN, load, planned, 450 * MB)
    assert found.setting.rows == 2048  # shorter rows would have saved nothing
    assert "--max-length 1024 --micro-batch-tokens 1024" in str(too_little("450MB", 450 * MB, load, planned, found))
