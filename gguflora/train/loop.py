"""The whole run on one screen. A generator: it does the training and yields what happened.

Between two yields the state is whole and can be saved. The order of the examples and the learning rate are functions
of (seed, step), so a state and its job say everything about what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gguflora.config import TrainingConfig
from gguflora.data import Encoded, pack, step_indices, steps_per_epoch
from gguflora.errors import NumericError
from gguflora.events import EpochDone, Evaluated, Event, Finished, Saved, SavedKind, StepDone
from gguflora.model import Decoder
from gguflora.train.checkpoint import Checkpoints
from gguflora.train.evaluate import evaluate
from gguflora.train.memory import resident_bytes
from gguflora.train.optimiser import clip, gradients_of, update
from gguflora.train.schedule import learning_rate, warmup_steps
from gguflora.train.state import State
from gguflora.train.step import Method, accumulate


@dataclass(frozen=True)
class Job:
    """All that a run needs and never changes.

    Attributes:
        decoder: the base with the state's pairs on it.
        micro_batch_tokens: most tokens in a packed row.
    """

    decoder: Decoder
    examples: Sequence[Encoded]
    validation: Sequence[Encoded]
    config: TrainingConfig
    micro_batch_tokens: int
    method: Method

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each example is trained once."""
        return steps_per_epoch(len(self.examples), self.config.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.config.epochs * self.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return warmup_steps(self.config.warmup_steps, self.total_steps)


def train(job: Job, state: State, checkpoints: Checkpoints | None, stop: Callable[[], str | None]) -> Iterator[Event]:
    """Train `state` to the end of `job`, saving to `checkpoints` (nowhere if None).

    `stop` is asked after each step; when it names a reason (a signal), the state is saved and the run ends there.

    Raises:
        NumericError: a loss or gradient is not finite; the state is that of the step before.
        MachineError: a file can't be written.
    """
    if state.step == 0 and job.validation:
        yield _evaluate(job, state)
    while state.step < job.total_steps:
        yield _step(job, state)
        epoch_ended = state.step % job.steps_per_epoch == 0 or state.step == job.total_steps
        if epoch_ended:
            yield _end_epoch(job, state)
        if job.validation and (epoch_ended or _due(state.step, job.config.eval_steps)):
            evaluated = _evaluate(job, state)
            yield evaluated
            if evaluated.best:
                yield from _save(checkpoints, state, "best", f"best_adapter_epoch_{evaluated.epoch}.gguf")
        elif epoch_ended and state.best_epoch == _epoch(job, state):
            yield from _save(checkpoints, state, "best", f"best_adapter_epoch_{state.best_epoch}.gguf")
        yield from _save_due(job, state, checkpoints)
        if (reason := stop()) and state.step < job.total_steps:
            yield from _save(checkpoints, state, "stopped", f"checkpoint-step-{state.step}.gguf")
            yield summary(state, checkpoints, reason)
            return
    state.finished = True
    yield from _save(checkpoints, state, "final", "final_adapter.gguf")
    yield summary(state, checkpoints, None)


def _step(job: Job, state: State) -> StepDone:
    """One update of the adapter."""
    started = time.monotonic()
    indices = step_indices(job.config.seed, state.step, len(job.examples), job.config.batch_size)
    micro_batches = pack([job.examples[index] for index in indices], job.micro_batch_tokens)
    loss = accumulate(job.decoder, micro_batches, job.method)
    if not abs(loss.nll) < float("inf"):
        sources = ", ".join(job.examples[index].source for index in indices)
        raise NumericError(
            f"the loss of step {state.step + 1} is not finite ({sources}); lower --learning-rate or --alpha."
        )
    gradients = gradients_of(state)
    norm = clip(gradients, job.config.max_grad_norm, state.step + 1)
    rate = learning_rate(
        state.step + 1, job.total_steps, job.warmup_steps, job.config.learning_rate, job.config.schedule
    )
    update(state, gradients, rate, job.config.weight_decay)
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


def _end_epoch(job: Job, state: State) -> EpochDone:
    """Close the epoch's sums; without validation the lowest epoch loss is the best."""
    loss = state.epoch_nll / state.epoch_weight
    epoch = _epoch(job, state)
    state.final_loss, state.epoch_nll, state.epoch_weight = loss, 0.0, 0.0
    if not job.validation and (state.best_loss is None or loss < state.best_loss):
        state.best_loss, state.best_epoch = loss, epoch
    return EpochDone(state.step, epoch, loss)


def _evaluate(job: Job, state: State) -> Evaluated:
    """Measure the validation examples; before the first step there is nothing that could be best."""
    measured = evaluate(job.decoder, job.validation, job.micro_batch_tokens, job.method)
    best = state.step > 0 and (state.best_loss is None or measured.nll < state.best_loss)
    epoch = _epoch(job, state)
    if best:
        state.best_loss, state.best_epoch = measured.nll, epoch
    return Evaluated(state.step, epoch, measured.nll, measured.tokens, best)


def _save_due(job: Job, state: State, checkpoints: Checkpoints | None) -> Iterator[Saved]:
    if _due(state.step, job.config.save_steps):
        yield from _save(checkpoints, state, "step", f"checkpoint-step-{state.step}.gguf")
    epoch, into = divmod(state.step, job.steps_per_epoch)
    if into == 0 and epoch % max(1, job.config.epochs // 5) == 0:
        yield from _save(checkpoints, state, "epoch", f"checkpoint_epoch_{epoch}.gguf")


def _save(checkpoints: Checkpoints | None, state: State, kind: SavedKind, name: str) -> Iterator[Saved]:
    if checkpoints:
        path = checkpoints.save_adapter(state, kind, name)
        if kind != "best":  # the best is a choice among measurements, not a point to go on from
            checkpoints.save_state(state)
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
    return -(-state.step // job.steps_per_epoch)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
