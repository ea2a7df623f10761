"""Every pair is reached by the gradient, and each gradient is that of the loss: held to finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguflora.config import TrainingConfig
from gguflora.data import MicroBatch, pack
from gguflora.model import new_pairs, with_pairs
from gguflora.train import Job, Method, named_parameters, new_state, train
from gguflora.train.step import accumulate, packed_row, trained_weight
from tests.tiny_training import EVERYTHING, SCALE, Tiny, examples, measured, take_gradients, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

STEP = 3e-6
TOLERANCE = 1e-6
"""Central differences err by the third derivative, 4e-8 of a gradient here, and by rounding, 1e-16 / STEP = 3e-11."""


@pytest.mark.parametrize("options", ["plain", "everything", "every option"])
def test_each_gradient_is_the_slope_of_the_loss(
    tmp_path: Path, method: Method, patched: dict[str, Any], options: str
) -> None:
    """Along a random direction of each lora_a and lora_b alone; rank 5, scale 2.5, B not zero, weights not 1."""
    seed, worst = 0, 0.0
    numbers: dict[str, Any] = {"plain": {}, "everything": EVERYTHING, "every option": patched}[options]
    model = tiny(tmp_path, torch.float64, **numbers)
    micro_batches = pack(examples(), micro_batch_tokens=50)
    assert len(micro_batches) > 1
    accumulate(model.decoder, micro_batches, method)
    found = take_gradients(model.pairs)
    assert len(found) == 2 * (7 * 3 + (1 if numbers else 0))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in named_parameters(model.pairs):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = float((found[name] * direction).sum())
        after, before = (
            loss_at(model, micro_batches, method, parameter, direction, distance) for distance in (STEP, -STEP)
        )
        seen = (after - before) / (2 * STEP)
        # A random direction sees about the gradient's norm; one that happens to see less is no excuse.
        size = float(found[name].norm())
        assert size > 0, name
        error = abs(slope - seen) / size
        assert error <= TOLERANCE, f"{name}: slope {seen}, gradient {slope}: {error:.2e} of its norm, seed {seed}"
        worst = max(worst, error)
    print(f"largest difference {worst:.1e} of a gradient's norm")


def loss_at(
    model: Tiny, micro_batches: list[MicroBatch], method: Method, parameter: Tensor, direction: Tensor, distance: float
) -> float:
    """The step's loss, by its definition from the nll, with one tensor moved."""
    with torch.no_grad():
        before = parameter.clone()
        parameter.add_(direction, alpha=distance)
    loss = 0.0
    for micro_batch in micro_batches:
        row = packed_row(micro_batch)
        loss += float((measured(model.decoder, row, method) * row.weights[row.labels >= 0]).sum())
    with torch.no_grad():
        parameter.copy_(before)
    return loss / sum(map(trained_weight, micro_batches))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_three_steps_every_row_of_every_pair_has_learned(
    tmp_path: Path, method: Method, dtype: torch.dtype
) -> None:
    """AdamW's second moment is not zero anywhere a gradient must have come: keys and values as well as queries."""
    model = tiny(tmp_path, dtype, **EVERYTHING)
    pairs = new_pairs(model.spec.linears(), 5, seed=0)
    state = new_state(pairs)
    config = TrainingConfig(warmup_steps=0, max_steps=3, batch_size=4, epochs=9)
    job = Job(with_pairs(model.base, pairs, SCALE), examples(), [], config, 50, method)
    for _ in train(job, state, None, lambda: None):
        pass
    assert state.step == 3
    assert len(state.exp_avg_sq) == 2 * (7 * 3 + 1)
    for name, moment in state.exp_avg_sq.items():
        values = moment.numpy()
        assert np.isfinite(values).all(), name
        assert (values > 0).any(axis=1).all(), f"a row of {name} never moved"
    for name, parameter in named_parameters(pairs):
        assert parameter.detach().any(), name
