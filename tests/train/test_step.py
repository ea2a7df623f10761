"""A step is one mean over its trained tokens: however it is cut, whatever came before, the gradient is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gguflora.data import Encoded, pack
from gguflora.model import LoraPair
from gguflora.train import Method, new_state
from gguflora.train.optimiser import gradients_of, update
from gguflora.train.step import StepLoss, accumulate, micro_batch_nll
from tests.numerics import assert_close, relative_difference
from tests.tiny_training import (
    EVERYTHING,
    LENGTHS,
    WEIGHTS,
    Tiny,
    examples,
    method_named,
    take_gradients,
    tiny,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Ways to cut seven examples into micro-batches, by index; the order within a step is no matter either.
SPLITS = {
    "one row": [[0, 1, 2, 3, 4, 5, 6]],
    "each alone": [[0], [1], [2], [3], [4], [5], [6]],
    "uneven": [[3], [0, 1, 2, 4, 5, 6]],
    "two and five": [[0, 2], [1, 3, 4, 5, 6]],
    "three, mixed up": [[6, 1, 3], [5, 0], [4, 2]],
}
# float64 rounds at 1e-16, float32 at 6e-8; the sums of a few hundred terms that differ in order leave 100 times that.
PRECISIONS = [
    (torch.float64, "reference", 1e-10),
    (torch.float64, "explicit", 1e-10),
    (torch.float64, "recompute", 1e-10),
    (torch.float32, "explicit", 1e-5),
]


def step_gradients(
    model: Tiny, rows: Sequence[Sequence[Encoded]], method: Method
) -> tuple[dict[str, Tensor], StepLoss]:
    """Gradients of one step of the given packed rows, taken from the pairs."""
    loss = accumulate(model.decoder, [pack(row, 1000)[0] for row in rows], method)
    return take_gradients(model.pairs), loss


@pytest.mark.parametrize(("dtype", "name", "tolerance"), PRECISIONS)
def test_any_cut_into_micro_batches_gives_the_same_gradients(
    tmp_path: Path, dtype: torch.dtype, name: str, tolerance: float
) -> None:
    model, encoded, method = tiny(tmp_path, dtype, **EVERYTHING), examples(), method_named(name)
    expected, whole = step_gradients(model, [encoded], method)
    assert len(expected) == 2 * 22
    worst = 0.0
    for cut, split in SPLITS.items():
        found, loss = step_gradients(model, [[encoded[index] for index in row] for row in split], method)
        assert loss.tokens == whole.tokens == sum(LENGTHS)
        assert loss.weight == pytest.approx(whole.weight, rel=1e-12)
        assert_close(loss.nll, whole.nll, tolerance, f"loss of {cut}")
        for tensor, gradient in found.items():
            assert_close(gradient, expected[tensor], tolerance, f"{tensor}, {cut}", seed=0)
            worst = max(worst, relative_difference(gradient, expected[tensor]))
    print(f"{dtype} {name}: at most {worst:.1e} apart")


def test_the_loss_is_the_weighted_mean_over_all_trained_tokens(tmp_path: Path, method: Method) -> None:
    """Sum of weight * nll over the sum of weights, from each example's own nll: no mean of means."""
    model, encoded = tiny(tmp_path, torch.float64), examples()
    _, loss = step_gradients(model, [encoded[:3], encoded[3:]], method)
    nll = [micro_batch_nll(model.decoder, pack([example], 1000)[0], method).sum() for example in encoded]
    counts = [int((example.labels >= 0).sum()) for example in encoded]
    weights = sum(weight * count for weight, count in zip(WEIGHTS, counts, strict=True))
    expected = sum(weight * float(total) for weight, total in zip(WEIGHTS, nll, strict=True)) / weights
    assert loss.mean == pytest.approx(expected, rel=1e-12)
    means = sum(float(total) / count for total, count in zip(nll, counts, strict=True)) / len(counts)
    assert abs(means - expected) > 0.01 * expected  # a mean of means would show


def test_the_weight_of_an_example_is_as_many_copies_of_it(tmp_path: Path, method: Method) -> None:
    """Weight 3 is the example three times, weight 1 once; so it multiplies the loss and nothing else."""
    model = tiny(tmp_path, torch.float64)
    heavy = examples([9, 21], [3.0, 1.0])
    once = examples([9, 21], [1.0, 1.0])
    one, _ = step_gradients(model, [heavy], method)
    other, _ = step_gradients(model, [[once[0], once[0]], [once[0], once[1]]], method)
    for name, gradient in one.items():
        assert_close(gradient, other[name], 1e-10, name)


def test_twice_the_examples_give_the_same_gradients(tmp_path: Path, method: Method) -> None:
    """A mean, not a sum: a larger batch is no larger learning rate."""
    model, encoded = tiny(tmp_path, torch.float64), examples()
    once, loss = step_gradients(model, [encoded], method)
    twice, same = step_gradients(model, [encoded, encoded], method)
    assert same.mean == pytest.approx(loss.mean, rel=1e-12)
    for name, gradient in once.items():
        assert_close(twice[name], gradient, 1e-10, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_equal_steps_give_equal_gradients_to_the_bit(tmp_path: Path, method: Method, dtype: torch.dtype) -> None:
    """Nothing is left over from the step before: neither a gradient nor what a kernel kept."""
    model = tiny(tmp_path, dtype)
    state, rows = new_state(model.pairs), pack(examples(), 50)
    found = []
    for _ in range(3):
        accumulate(model.decoder, rows, method)
        found.append([gradient.clone() for gradient in gradients_of(state)])
        update(state, gradients_of(state), 0.0, 0.0)  # a learning rate of 0 moves nothing
    for step in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], step, strict=True))


def test_a_pair_that_the_graph_does_not_reach_is_an_error(tmp_path: Path, method: Method) -> None:
    """A state with one pair more than the model has: refused by name, never taken for a gradient of zero."""
    model = tiny(tmp_path, torch.float32)
    lost = LoraPair(torch.zeros(5, 48, requires_grad=True), torch.zeros(60, 5, requires_grad=True))
    state = new_state({**model.pairs, "blk.9.attn_q.weight": lost})
    accumulate(model.decoder, pack(examples(), 50), method)
    with pytest.raises(RuntimeError, match=r"no gradient reached blk\.9\.attn_q\.weight\.lora_a"):
        gradients_of(state)
