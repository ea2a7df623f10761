"""The whole run on one screen. A generator: it does the training and yields what happened.

Between two yields the state is whole and can be saved. The order of the examples and the learning rate are functions
of (seed, step), so a state and its job say everything about what comes next.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gguflora.config import TrainingConfig
from gguflora.data import Encoded, MicroBatch, StepPlan, lengths_of, pack, plan_steps
from gguflora.errors import NumericError
from gguflora.events import EpochDone, Evaluated, Event, Finished, FirstBatch, Saved, SavedKind, StepDone
from gguflora.model import Decoder, Workspace
from gguflora.train.checkpoint import Checkpoints
from gguflora.train.evaluate import evaluate
from gguflora.train.memory import resident_bytes
from gguflora.train.optimiser import clip, gradients_of, update
from gguflora.train.room import is_out_of_memory, make_room
from gguflora.train.schedule import learning_rate, warmup_steps
from gguflora.train.state import State, named_parameters
from gguflora.train.step import DropoutKey, Method, accumulate


@dataclass(frozen=True)
class Job:
    """All that a run needs and never changes.

    Attributes:
        decoder: the base with the state's pairs on it.
        work: buffers of the explicit forward and backward; None trains by the reference.
        dropout: share of what the pairs read that is dropped.
        packing: several examples in a row; else each has its own.
    """

    decoder: Decoder
    examples: Sequence[Encoded]
    validation: Sequence[Encoded]
    config: TrainingConfig
    work: Workspace | None
    dropout: float = 0.0
    packing: bool = True

    @functools.cached_property
    def plan(self) -> StepPlan:
        """Which examples each step trains."""
        return plan_steps(lengths_of(self.examples).tolist(), self.config)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.total

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return warmup_steps(self.config.warmup_steps, self.total_steps)


def train(job: Job, state: State, checkpoints: Checkpoints | None, stop: Callable[[], str | None]) -> Iterator[Event]:
    """Train `state` to the end of `job`, saving to `checkpoints` (nowhere if None).

    `stop` is asked after each step; when it names a reason (a signal), the state is saved and the run ends there.

    Raises:
        NumericError: a loss, a gradient or the adapter is not finite; saved is the state of the step before.
        MachineError: a file can't be written.
    """
    if state.step == 0 and job.validation:
        yield _evaluate(job, state)
    while state.step < job.total_steps:
        batch = _batch(job, state)
        try:
            done = _step(job, state, batch)
        except NumericError:
            if state.step > 0 and math.isfinite(_norm(state)):
                yield from _save(checkpoints, state, [("stopped", f"checkpoint-step-{state.step}.gguf")])
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            yield make_room(state, job.work, [len(example.tokens) for example in batch.examples], error)
            continue
        yield done
        yield from _measure(job, state, checkpoints)
        reason = stop() if state.step < job.total_steps else None
        yield from _save(checkpoints, state, _due_now(job, state, stopping=reason is not None))
        if reason:
            yield summary(state, checkpoints, reason)
            return
    state.finished = True
    yield from _save(checkpoints, state, [("final", "final_adapter.gguf")])
    yield summary(state, checkpoints, None)


@dataclass(frozen=True)
class Batch:
    """The examples of one step, and their numbers."""

    examples: list[Encoded]
    numbers: npt.NDArray[np.int64]


def _batch(job: Job, state: State) -> Batch:
    """The examples of the next step."""
    numbers = job.plan.examples(state.step)
    return Batch([job.examples[number] for number in numbers], numbers)


def micro_batches(job: Job, state: State, batch: Batch) -> list[MicroBatch]:
    """A step's examples in rows."""
    room = state.micro_batch_tokens if job.packing else 1
    return pack(batch.examples, room, batch.numbers, tight=job.config.batch_tokens is not None)


def _step(job: Job, state: State, batch: Batch) -> StepDone:
    """One update of the adapter."""
    started = time.monotonic()
    dropout = DropoutKey(job.dropout, job.config.seed, state.step)
    loss = accumulate(job.decoder, micro_batches(job, state, batch), Method(job.work, state.recompute), dropout)
    step = f"step {state.step + 1} ({', '.join(example.source for example in batch.examples)})"
    _require_finite(loss.nll, f"the loss of {step}")
    gradients = gradients_of(state)
    norm = clip(gradients, job.config.max_grad_norm, step)
    rate = learning_rate(
        state.step + 1, job.total_steps, job.warmup_steps, job.config.learning_rate, job.config.schedule
    )
    update(state, gradients, rate, job.config.weight_decay)
    _require_finite(_norm(state), f"the adapter after {step}")
    state.epoch_nll += loss.nll
    state.epoch_weight += loss.weight
    seconds = time.monotonic() - started
    state.tokens += loss.tokens
    state.seconds += seconds
    return StepDone(
        step=state.step,
        total_steps=job.total_steps,
        epoch=_epoch(job, state),
        loss=loss.mean,
        learning_rate=rate,
        gradient_norm=norm,
        tokens=loss.tokens,
        tokens_per_second=loss.tokens / seconds,
        seconds_left=state.seconds / state.step * (job.total_steps - state.step),
        memory=resident_bytes(),
    )


def _measure(job: Job, state: State, checkpoints: Checkpoints | None) -> Iterator[Event]:
    """What is due after a step besides saving: the epoch's loss, the validation loss, the best adapter."""
    epoch_ended = job.plan.is_end(state.step) or state.step == job.total_steps
    best = False
    if epoch_ended:
        done = _end_epoch(job, state)
        best = not job.validation and _is_best(job, state, done.loss)
        yield done
    if job.validation and (epoch_ended or _due(state.step, job.config.eval_steps)):
        evaluated = _evaluate(job, state)
        best = evaluated.best
        yield evaluated
    if best and checkpoints:
        path = checkpoints.save_adapter(state, "best", f"best_adapter_epoch_{state.best_epoch}.gguf")
        yield Saved(state.step, "best", str(path))


def _end_epoch(job: Job, state: State) -> EpochDone:
    """Close the epoch's sums."""
    loss = state.epoch_nll / state.epoch_weight
    state.final_loss, state.epoch_nll, state.epoch_weight = loss, 0.0, 0.0
    return EpochDone(state.step, _epoch(job, state), loss)


def _evaluate(job: Job, state: State) -> Evaluated:
    """Measure the validation examples; before the first step there is nothing that could be best."""
    measured = evaluate(job.decoder, job.validation, state.micro_batch_tokens, Method(job.work))
    _require_finite(measured.nll, f"the validation loss after step {state.step}")
    best = state.step > 0 and _is_best(job, state, measured.nll)
    return Evaluated(state.step, _epoch(job, state), measured.nll, measured.tokens, best)


def _is_best(job: Job, state: State, loss: float) -> bool:
    """Whether no earlier loss was as low; if so, the state keeps it. Without validation it is the epoch's own loss."""
    if state.best_loss is not None and loss >= state.best_loss:
        return False
    state.best_loss, state.best_epoch = loss, _epoch(job, state)
    return True


def _due_now(job: Job, state: State, stopping: bool) -> list[tuple[SavedKind, str]]:
    """Checkpoints to save at this step: kind and name of each."""
    due: list[tuple[SavedKind, str]] = []
    by_step = _due(state.step, job.config.save_steps)
    if by_step or stopping:
        due.append(("step" if by_step else "stopped", f"checkpoint-step-{state.step}.gguf"))
    epoch = _epoch(job, state)
    if job.plan.is_end(state.step) and epoch % max(1, job.config.epochs // 5) == 0:
        due.append(("epoch", f"checkpoint_epoch_{epoch}.gguf"))
    return due


def _save(checkpoints: Checkpoints | None, state: State, due: list[tuple[SavedKind, str]]) -> Iterator[Saved]:
    """Save the adapter under each name, then the state.

    The state comes last: a run killed in between does the step again and writes all of them, where a state saved
    first would let it go on without those that were still missing.
    """
    if checkpoints and due:
        paths = [(kind, checkpoints.save_adapter(state, kind, name)) for kind, name in due]
        checkpoints.save_state(state)
        for kind, path in paths:
            yield Saved(state.step, kind, str(path))


def summary(state: State, checkpoints: Checkpoints | None, reason: str | None) -> Finished:
    """What a run came to; `reason` names what stopped it before its end."""
    folder = checkpoints.folder if checkpoints else None
    best = folder / f"best_adapter_epoch_{state.best_epoch}.gguf" if folder and state.best_epoch else None
    last = f"checkpoint-step-{state.step}.gguf" if reason else "final_adapter.gguf"
    return Finished(
        step=state.step,
        total_seconds=state.seconds,
        final_loss=state.final_loss,
        best_loss=state.best_loss,
        best_epoch=state.best_epoch,
        best_adapter=str(best) if best else None,
        total_steps=state.step,
        milliseconds_per_step=1000 * state.seconds / max(1, state.step),
        tokens_per_second=state.tokens / max(1e-9, state.seconds),
        adapter=str(folder / last) if folder else None,
        stopped_by=reason,
    )


def _epoch(job: Job, state: State) -> int:
    """The epoch that the last step belongs to, from 1 (0 before the first)."""
    return job.plan.epoch(state.step)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _norm(state: State) -> float:
    """Norm of all of the adapter: not finite as soon as one of its values is not."""
    norms = [torch.linalg.vector_norm(parameter.detach()) for _, parameter in named_parameters(state.pairs)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _require_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise NumericError(f"{what} is not finite; lower --learning-rate or --alpha.")


def first_batch(job: Job, state: State) -> FirstBatch:
    """Compute the first step's loss, and update nothing."""
    batch = _batch(job, state)
    rows = micro_batches(job, state, batch)
    measured = evaluate(job.decoder, batch.examples, state.micro_batch_tokens, Method(job.work))
    tokens = sum(len(row.tokens) for row in rows)
    return FirstBatch(len(batch.examples), len(rows), tokens, measured.nll, resident_bytes())
