"""The loop keeps the definitions: what a step and an epoch are, when what is saved under which name, what is best."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguflora.arch import resolve_targets
from gguflora.config import TrainingConfig
from gguflora.data import Encoded
from gguflora.errors import NumericError
from gguflora.events import EpochDone, Evaluated, Event, Finished, Saved, StepDone
from gguflora.gguf import Identity, read_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import new_pairs, with_pairs
from gguflora.train import (
    Checkpoints,
    Job,
    Measured,
    State,
    load_newest_state,
    named_parameters,
    new_state,
    train,
)
from gguflora.train import loop as loop_module
from gguflora.train.step import StepLoss, accumulate
from tests.tiny_training import METHODS, Tiny, examples, method_named, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA, RANK = 8.0, 4
BASE = Identity("a" * 64, "b" * 64, "c" * 64)
LENGTHS, WEIGHTS = (12, 5, 9, 14, 7, 3, 11, 8, 6, 10), (1.0, 0.5, 3.0, 1.0, 0.25, 2.0, 1.5, 1.0, 1.0, 0.75)
TRAIN = [
    Encoded(example.tokens, example.labels, example.weight, f"data.jsonl:{line}")
    for line, example in enumerate(examples(LENGTHS, WEIGHTS), 1)
]
VALIDATION = examples((9, 13, 4), (1.0, 5.0, 0.1), seed=7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("model"), torch.float32)


def never() -> str | None:
    return None


def fresh(model: Tiny, seed: int = 0) -> State:
    return new_state(new_pairs(resolve_targets(model.spec, ("all-linear",), RANK), RANK, seed))


def job_for(model: Tiny, state: State, validation: list[Encoded] | None = None, **settings: Any) -> Job:
    settings = {"learning_rate": 1e-3, "epochs": 1} | settings
    decoder = with_pairs(model.base, state.pairs, ALPHA / RANK)
    method = settings.pop("method", "explicit")
    rows = settings.pop("examples", TRAIN)
    how = method_named(method)
    state.micro_batch_tokens, state.recompute = 64, how.recompute
    return Job(decoder, rows, validation or [], TrainingConfig(**settings), how.work)


def checkpoints_in(folder: Path) -> Checkpoints:
    return Checkpoints(folder, "llama", ALPHA, BASE)


def run(
    model: Tiny,
    folder: Path | None = None,
    validation: list[Encoded] | None = None,
    stop: Callable[[], str | None] = never,
    seed: int = 0,
    **settings: Any,
) -> tuple[State, list[Event]]:
    state = fresh(model, seed)
    checkpoints = checkpoints_in(folder) if folder else None
    return state, list(train(job_for(model, state, validation, seed=seed, **settings), state, checkpoints, stop))


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def saved(events: list[Event]) -> list[tuple[int, str, str]]:
    return [(event.step, event.kind, Path(event.path).name) for event in of(Saved, events)]


def bits(state: State) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in named_parameters(state.pairs)}


def adapters(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.gguf"))


# --- which checkpoints, when, under which names ---


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1]), (4, [1, 2, 3, 4]), (10, [2, 4, 6, 8, 10]), (13, [2, 4, 6, 8, 10, 12])]
)
def test_every_fifth_of_the_epochs_one_is_saved_by_its_number(
    model: Tiny, tmp_path: Path, epochs: int, expected: list[int]
):
    """The specification: (epoch + 1) % Math.max(1, epochs / 5) == 0."""
    _, events = run(model, tmp_path, epochs=epochs, examples=TRAIN[:3], batch_size=2)
    assert [(step, name) for step, kind, name in saved(events) if kind == "epoch"] == [
        (2 * epoch, f"checkpoint_epoch_{epoch}.gguf") for epoch in expected
    ]
    assert adapters(tmp_path) == sorted(
        [f"checkpoint_epoch_{epoch}.gguf" for epoch in expected]
        + ["final_adapter.gguf"]
        + [f"best_adapter_epoch_{of(Finished, events)[0].best_epoch}.gguf"]
    )


def test_the_four_kinds_of_checkpoint_in_their_order(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_module, "evaluate", scripted([9.0, 8.0, 7.0]))
    _, events = run(model, tmp_path, validation=VALIDATION, epochs=2, save_steps=2, batch_size=4)  # 3 steps an epoch
    assert [event for event in saved(events) if event[1] != "best"] == [
        (2, "step", "checkpoint-step-2.gguf"),
        (3, "epoch", "checkpoint_epoch_1.gguf"),
        (4, "step", "checkpoint-step-4.gguf"),
        (6, "step", "checkpoint-step-6.gguf"),
        (6, "epoch", "checkpoint_epoch_2.gguf"),
        (6, "final", "final_adapter.gguf"),
    ]
    assert [event for event in saved(events) if event[1] == "best"] == [
        (3, "best", "best_adapter_epoch_1.gguf"),
        (6, "best", "best_adapter_epoch_2.gguf"),
    ]
    for step, kind, name in saved(events):  # each stands whole, and holds the pairs of its own step
        if name != "best_adapter_epoch_1.gguf":
            assert read_adapter(tmp_path / name).alpha == ALPHA, (step, kind)
    same = {(tmp_path / name).read_bytes() for step, _, name in saved(events) if step == 6}
    assert len(same) == 1
    assert (tmp_path / "checkpoint-step-4.gguf").read_bytes() not in same


def test_all_adapters_of_a_step_stand_before_its_state_does(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a run killed in between would go on from the state without ever writing the others."""
    there: list[list[str]] = []
    monkeypatch.setattr(Checkpoints, "save_state", lambda self, _: there.append(adapters(self.folder)))
    run(model, tmp_path, save_steps=3, epochs=1)
    assert {"checkpoint-step-3.gguf", "checkpoint_epoch_1.gguf"} <= set(there[0])


def test_without_checkpoints_nothing_is_saved_and_the_same_is_learned(model: Tiny, tmp_path: Path):
    with_files, _ = run(model, tmp_path)
    without, events = run(model, None)
    assert saved(events) == []
    assert of(Finished, events)[0].adapter is None
    assert bits(without) == bits(with_files)


# --- which one is best ---


def scripted(losses: list[float]) -> Callable[..., Measured]:
    """Validation losses, one a measurement; the first is the one before training."""
    remaining = iter(losses)
    return lambda *_: Measured(next(remaining), 1)


def test_the_best_is_the_lowest_validation_loss_and_replaces_the_older(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The base's own loss before training is no candidate; an equal loss later is not better."""
    monkeypatch.setattr(loop_module, "evaluate", scripted([0.5, 5.0, 3.0, 4.0, 2.0, 2.0, 2.5]))
    _, events = run(model, tmp_path, validation=VALIDATION, epochs=6)
    assert [event.best for event in of(Evaluated, events)] == [False, True, True, False, True, False, False]
    assert [name for _, kind, name in saved(events) if kind == "best"] == [
        "best_adapter_epoch_1.gguf",
        "best_adapter_epoch_2.gguf",
        "best_adapter_epoch_4.gguf",
    ]
    assert [name for name in adapters(tmp_path) if name.startswith("best")] == ["best_adapter_epoch_4.gguf"]
    finished = of(Finished, events)[0]
    assert (finished.best_loss, finished.best_epoch) == (2.0, 4)
    assert finished.best_adapter == str(tmp_path / "best_adapter_epoch_4.gguf")
    assert (tmp_path / "best_adapter_epoch_4.gguf").read_bytes() == (tmp_path / "checkpoint_epoch_4.gguf").read_bytes()


def test_the_best_may_lie_within_an_epoch(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """eval_steps 2, 3 steps an epoch: measured at 2, 3, 4 and 6. The best of epoch 2 is the one after step 4."""
    monkeypatch.setattr(loop_module, "evaluate", scripted([9.0, 8.0, 7.0, 1.0, 6.0]))
    _, events = run(model, tmp_path, validation=VALIDATION, epochs=2, eval_steps=2, save_steps=4)
    assert [(event.step, event.epoch) for event in of(Evaluated, events)] == [(0, 0), (2, 1), (3, 1), (4, 2), (6, 2)]
    assert (tmp_path / "best_adapter_epoch_2.gguf").read_bytes() == (tmp_path / "checkpoint-step-4.gguf").read_bytes()


def test_without_validation_the_best_is_the_lowest_epoch_loss(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    epochs = iter([4.0, 2.0, 3.0, 1.5])

    def losses(*arguments: Any) -> StepLoss:
        accumulate(*arguments)
        return StepLoss(nll=next(epochs), weight=1.0, tokens=1)

    monkeypatch.setattr(loop_module, "accumulate", losses)
    _, events = run(model, tmp_path, epochs=4, batch_size=len(TRAIN))
    assert [name for _, kind, name in saved(events) if kind == "best"] == [
        "best_adapter_epoch_1.gguf",
        "best_adapter_epoch_2.gguf",
        "best_adapter_epoch_4.gguf",
    ]
    finished = of(Finished, events)[0]
    assert (finished.best_loss, finished.best_epoch, finished.final_loss) == (1.5, 4, 1.5)
    assert not of(Evaluated, events)


# --- what a step and an epoch are ---


def test_each_epoch_trains_every_example_exactly_once_and_keeps_the_short_last_step(
    model: Tiny, monkeypatch: pytest.MonkeyPatch
):
    steps: list[list[str]] = []
    pack = loop_module.pack

    def spy(encoded: list[Encoded], room: int, numbers: Any, *, tight: bool) -> Any:
        steps.append([example.source for example in encoded])
        return pack(encoded, room, numbers, tight=tight)

    monkeypatch.setattr(loop_module, "pack", spy)
    run(model, epochs=3, batch_size=4)
    assert [len(step) for step in steps] == [4, 4, 2] * 3
    everything = Counter(example.source for example in TRAIN)
    epochs = [[source for step in steps[start : start + 3] for source in step] for start in (0, 3, 6)]
    assert [Counter(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_steps_of_tokens_are_counted_as_they_are(model: Tiny, tmp_path: Path):
    """At most 19 tokens a step; epochs of different numbers of steps; everything that counts steps counts these."""
    state = fresh(model)
    job = job_for(model, state, VALIDATION, epochs=4, batch_tokens=19, learning_rate=1e-2)
    events = list(train(job, state, checkpoints_in(tmp_path), never))
    steps = of(StepDone, events)
    assert len({after - before for before, after in itertools.pairwise([0, *job.plan.ends])}) > 1
    assert [event.step for event in steps] == list(range(1, job.plan.ends[-1] + 1))
    assert max(event.tokens for event in steps) <= 19
    assert sum(event.tokens for event in steps) == 4 * sum(LENGTHS)
    assert [event.step for event in of(EpochDone, events)] == list(job.plan.ends)
    assert [event.epoch for event in of(EpochDone, events)] == [1, 2, 3, 4]
    assert [event.step for event in of(Evaluated, events)] == [0, *job.plan.ends]
    assert {event.total_steps for event in steps} == {len(steps)}
    # Cosine: the step after the last would have a rate of 0; 1 - cos(x) is x^2 / 2 there.
    left = math.pi / (len(steps) - job.warmup_steps)
    assert steps[-1].learning_rate == pytest.approx(1e-2 * left**2 / 4, rel=left**2)
    assert [name for _, kind, name in saved(events) if kind == "epoch"] == [
        f"checkpoint_epoch_{epoch}.gguf" for epoch in (1, 2, 3, 4)
    ]


def nll_in_llamacpp(model: Tiny, encoded: list[Encoded]) -> list[np.ndarray[Any, Any]]:
    with LlamaModel(model.gguf.path, exact=True, threads=1) as llama:
        return [llama.nll(example.tokens, example.labels) for example in encoded]


def test_step_and_epoch_losses_are_weighted_means_over_trained_tokens(model: Tiny):
    """llama.cpp's losses, weighted by hand. At a learning rate of 1e-12 every step meets the base's own losses.

    1e-5: the worst that exact graphs differ by in float32 (tests/numerics.py).
    """
    nll = nll_in_llamacpp(model, TRAIN)
    weighted = sum(example.weight * losses.sum() for example, losses in zip(TRAIN, nll, strict=True))
    weights = sum(example.weight * len(losses) for example, losses in zip(TRAIN, nll, strict=True))
    unweighted = np.concatenate(nll).mean()
    assert abs(weighted / weights - unweighted) > 0.01  # so that a loss without weights would be seen

    _, events = run(model, epochs=2, learning_rate=1e-12)
    for done in of(EpochDone, events):
        assert done.loss == pytest.approx(weighted / weights, abs=1e-5)
    assert of(Finished, events)[0].final_loss == of(EpochDone, events)[1].loss

    _, events = run(model, batch_size=len(TRAIN), learning_rate=1e-12)
    assert of(StepDone, events)[0].loss == pytest.approx(weighted / weights, abs=1e-5)
    assert of(StepDone, events)[0].tokens == sum(LENGTHS)


def test_the_epoch_loss_is_no_mean_of_step_means(model: Tiny):
    """Two steps of 1 and 9 trained tokens: the mean of their losses is another number."""
    short, long = examples((2, 30), (1.0, 1.0), seed=3)
    _, events = run(model, examples=[short, long], batch_size=1, learning_rate=1e-12)
    nll = nll_in_llamacpp(model, [short, long])
    expected, mean_of_means = np.concatenate(nll).mean(), np.mean([losses.mean() for losses in nll])
    assert abs(expected - mean_of_means) > 0.01
    assert of(EpochDone, events)[0].loss == pytest.approx(expected, abs=1e-5)


def test_validation_ignores_weights(model: Tiny):
    _, events = run(model, validation=VALIDATION)
    before = of(Evaluated, events)[0]
    nll = np.concatenate(nll_in_llamacpp(model, VALIDATION))
    assert before.loss == pytest.approx(nll.mean(), abs=1e-5)
    assert before.tokens == len(nll)
    assert (before.step, before.best) == (0, False)


@pytest.mark.parametrize(("max_steps", "steps"), [(1, 1), (4, 4), (5, 5), (100, 6)])
def test_max_steps_ends_the_run_within_an_epoch(model: Tiny, tmp_path: Path, max_steps: int, steps: int):
    _, events = run(model, tmp_path, validation=VALIDATION, epochs=2, max_steps=max_steps)
    assert [event.step for event in of(StepDone, events)] == list(range(1, steps + 1))
    assert {event.total_steps for event in of(StepDone, events)} == {steps}
    assert of(Finished, events)[0].total_steps == steps
    assert of(Evaluated, events)[-1].step == steps  # the end is measured, whether or not an epoch ends there
    assert "final_adapter.gguf" in adapters(tmp_path)
    assert ("checkpoint_epoch_2.gguf" in adapters(tmp_path)) == (steps == 6)  # a part of an epoch is none


@pytest.mark.parametrize(
    ("eval_steps", "expected"), [(None, [0, 3, 6]), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 3, 4, 6]), (50, [0, 3, 6])]
)
def test_eval_steps_adds_measurements_to_those_at_each_epochs_end(
    model: Tiny, eval_steps: int | None, expected: list[int]
):
    _, events = run(model, validation=VALIDATION, epochs=2, eval_steps=eval_steps)
    assert [event.step for event in of(Evaluated, events)] == expected


def test_without_validation_examples_nothing_is_measured(model: Tiny):
    _, events = run(model, eval_steps=1)
    assert of(Evaluated, events) == []


def test_the_summary_adds_up(model: Tiny, tmp_path: Path):
    state, events = run(model, tmp_path, epochs=2)
    finished, steps = of(Finished, events)[0], of(StepDone, events)
    assert events[-1] is finished
    assert finished.total_steps == finished.step == len(steps) == 6
    assert finished.milliseconds_per_step == pytest.approx(1000 * finished.total_seconds / 6)
    assert finished.tokens_per_second == pytest.approx(2 * sum(LENGTHS) / finished.total_seconds)
    assert finished.adapter == str(tmp_path / "final_adapter.gguf")
    assert finished.stopped_by is None
    assert finished.best_loss == min(event.loss for event in of(EpochDone, events))
    assert steps[-1].seconds_left == 0
    assert state.finished


# --- the same bits ---


@pytest.mark.parametrize("method", [*METHODS, "compiled"])
def test_the_same_run_twice_is_the_same_to_the_bit(model: Tiny, method: str):
    (first, events), (second, again) = (run(model, validation=VALIDATION, epochs=2, method=method) for _ in range(2))
    assert bits(first) == bits(second)
    assert [event.loss for event in of(StepDone, events)] == [event.loss for event in of(StepDone, again)]
    other_order, _ = run(
        model, validation=VALIDATION, epochs=2, seed=1, method=method
    )  # the control: another seed is another run
    assert bits(first) != bits(other_order)


def test_recomputing_changes_no_bit_of_a_run(model: Tiny):
    stored, recomputed = (run(model, epochs=2, method=method)[0] for method in ("explicit", "recompute"))
    assert bits(stored) == bits(recomputed)


def test_measuring_in_between_changes_nothing_that_is_learned(model: Tiny):
    measured, events = run(model, validation=VALIDATION, epochs=2, eval_steps=1)
    unmeasured, _ = run(model, epochs=2)
    assert len(of(Evaluated, events)) == 7
    assert bits(measured) == bits(unmeasured)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_stopped_run_is_saved_whole_and_goes_on_to_the_same_bits(model: Tiny, tmp_path: Path, at: int):
    whole, _ = run(model, validation=VALIDATION, epochs=2, eval_steps=2)
    asked = iter([None] * (at - 1) + ["SIGTERM"])
    _, events = run(model, tmp_path, validation=VALIDATION, stop=lambda: next(asked), epochs=2, eval_steps=2)
    finished = of(Finished, events)[0]
    assert (finished.step, finished.stopped_by) == (at, "SIGTERM")
    assert finished.adapter == str(tmp_path / f"checkpoint-step-{at}.gguf")
    assert "final_adapter.gguf" not in adapters(tmp_path)
    state = load_newest_state(tmp_path).state
    assert state is not None
    job = job_for(model, state, VALIDATION, epochs=2, eval_steps=2)
    later = list(train(job, state, checkpoints_in(tmp_path), never))
    assert [event.step for event in of(StepDone, later)] == list(range(at + 1, 7))
    assert bits(state) == bits(whole)
    assert (state.final_loss, state.best_loss, state.best_epoch) == (
        whole.final_loss,
        whole.best_loss,
        whole.best_epoch,
    )
    assert "final_adapter.gguf" in adapters(tmp_path)


def test_a_signal_during_the_last_step_leaves_a_finished_run(model: Tiny, tmp_path: Path):
    asked = iter([None, None])  # never asked after the third, the last
    _, events = run(model, tmp_path, stop=lambda: next(asked))
    assert of(Finished, events)[0].stopped_by is None


# --- numbers that are no longer finite ---


def plant(monkeypatch: pytest.MonkeyPatch, at: int, spoil: Callable[[Any, StepLoss], StepLoss]) -> None:
    """Let `spoil` change what step number `at` computed."""
    calls = iter(range(1, 1000))

    def spoilt(decoder: Any, *arguments: Any) -> StepLoss:
        loss = accumulate(decoder, *arguments)
        return spoil(decoder, loss) if next(calls) == at else loss

    monkeypatch.setattr(loop_module, "accumulate", spoilt)


def no_loss(_: Any, loss: StepLoss) -> StepLoss:
    return StepLoss(float("nan"), loss.weight, loss.tokens)


def no_gradient(decoder: Any, loss: StepLoss) -> StepLoss:
    decoder.layers[1].ffn.ffn_up.pair.lora_b.grad[3, 1] = float("inf")
    return loss


@pytest.mark.parametrize("spoil", [no_loss, no_gradient])
def test_a_step_that_is_not_finite_stops_the_run_with_the_state_of_the_step_before(
    model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
):
    state = fresh(model)
    events: list[Event] = []
    before: list[dict[str, bytes]] = []
    plant(monkeypatch, 3, spoil)
    with pytest.raises(NumericError, match="of step 3") as caught:
        for event in train(job_for(model, state, epochs=2), state, checkpoints_in(tmp_path), never):
            events.append(event)
            if isinstance(event, StepDone):
                before.append(bits(state))
    assert caught.value.exit_code == 5
    assert [event.step for event in of(StepDone, events)] == [1, 2]
    assert state.step == 2
    assert bits(state) == before[1] != before[0]
    assert saved(events) == [(2, "stopped", "checkpoint-step-2.gguf")]
    kept = load_newest_state(tmp_path).state
    assert kept is not None
    assert (kept.step, bits(kept)) == (2, before[1])


@pytest.mark.parametrize(
    ("spoil", "rate", "what"),
    [(no_loss, 1e-3, "loss of"), (no_gradient, 1e-3, "gradients of"), (lambda _, loss: loss, 1e39, "adapter after")],
)
def test_the_message_names_the_examples_of_the_step(
    model: Tiny, monkeypatch: pytest.MonkeyPatch, spoil: Any, rate: float, what: str
):
    plant(monkeypatch, 1, spoil)
    with pytest.raises(NumericError, match=f"the {what} step 1 ") as caught:
        run(model, batch_size=len(TRAIN), learning_rate=rate, warmup_steps=0)
    assert all(example.source in str(caught.value) for example in TRAIN)


def test_an_update_that_leaves_the_numbers_is_not_saved(model: Tiny, tmp_path: Path):
    """A learning rate beyond float32: the gradients are fine, the adapter after the step is not."""
    state = fresh(model)
    with pytest.raises(NumericError, match=r"the adapter after step 1 \(.*\) is not finite"):
        list(train(job_for(model, state, learning_rate=1e39, warmup_steps=0), state, checkpoints_in(tmp_path), never))
    assert list(tmp_path.iterdir()) == []


def test_a_validation_loss_that_is_not_finite_stops_the_run(model: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_module, "evaluate", scripted([1.0, float("nan")]))
    with pytest.raises(NumericError, match="the validation loss after step 3 is not finite"):
        run(model, validation=VALIDATION)
