"""A whole training run: open, prepare, plan, train, verify, report. The command line and LoraTrainer both call it.

`run` is a generator of events, like the training loop inside it; nothing is printed here.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguflora import llamacpp
from gguflora.arch import LinearSpec, resolve_targets
from gguflora.config import DataConfig, LoraConfig, TrainingConfig
from gguflora.data import Encoded, Example
from gguflora.errors import GgufloraError
from gguflora.events import Event, Finished, Planned, Warned
from gguflora.kernels import choose_dtype
from gguflora.model import Decoder, Workspace, load_decoder, new_pairs, with_pairs
from gguflora.report import append_metrics, keep_metrics_until
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, first_example, make_dataset
from gguflora.run.folder import check_folder, claim_folder, write_record
from gguflora.run.opening import Base, model_loaded, open_base
from gguflora.run.setting import environment, keep_freed_memory, set_threads
from gguflora.run.start import Start, resumed_start
from gguflora.run.verify import answers, verify
from gguflora.train import Checkpoints, Job, Method, State, new_state, summary, train

MICRO_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        examples: to train; split according to `data` unless `validation` is given.
        output_dir: where checkpoints go; None writes nothing.
        resume: go on from the newest state in `output_dir`.
        stop: asked after each step for a reason to stop (a signal's name), or None.
    """

    model: Path
    examples: Sequence[Example]
    validation: Sequence[Example] | None
    lora: LoraConfig
    data: DataConfig
    training: TrainingConfig
    output_dir: Path | None
    resume: bool = False
    stop: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Setup:
    """All that is decided before training; `decoder` is the base without pairs, `record` what run.json will hold."""

    base: Base
    dataset: Dataset
    targets: tuple[LinearSpec, ...]
    record: dict[str, Any]
    decoder: Decoder


@dataclass
class Outcome:
    """What a run leaves in memory, filled in when training starts: the state, and the base it is for."""

    state: State | None = None
    base: Base | None = None


def run(request: Request, outcome: Outcome) -> Generator[Event, None, None]:
    """Do the whole run; the last event is Finished. With an output folder, its metrics file has every event.

    Nothing is written before all that was given is known to be usable, the weights included.

    Raises:
        GgufloraError: what was given, the machine or the numbers made it impossible; nothing half-written is left.
    """
    if request.output_dir:
        check_folder(request.output_dir, request.resume)
    base = open_base(request.model)
    targets = resolve_targets(base.spec, request.lora.target, request.lora.rank)
    opened = model_loaded(base)
    yield opened
    dataset = make_dataset(base, request.examples, request.validation, request.data, request.training.seed)
    about_data = _about_data(base, dataset)
    yield from about_data
    setup = Setup(base, dataset, targets, _record(request, base, dataset), _decoder(base))
    outcome.base = base
    if request.output_dir is None:
        outcome.state = _fresh(request, setup)
        yield from _train(request, setup, outcome.state)
        return
    with claim_folder(request.output_dir, request.resume):
        yield from _recorded(request, request.output_dir, setup, outcome, [opened, *about_data])


def _about_data(base: Base, dataset: Dataset) -> list[Event]:
    overlap = f"{dataset.overlap} validation examples are trained as well: their loss measures memory."
    warned = [Warned(overlap)] if dataset.overlap else []
    return [data_ready(dataset), *warned, first_example(base, dataset.train.encoded[0])]


def _recorded(request: Request, folder: Path, setup: Setup, outcome: Outcome, told: list[Event]) -> Iterator[Event]:
    """The part of a run that writes; `told` goes into the metrics file as well."""
    start = Start(_fresh(request, setup), [], reported=False)
    if request.resume:
        start = resumed_start(folder, start.state, setup.record)
    outcome.state = start.state
    keep_metrics_until(folder, start.state.step)
    write_record(folder, setup.record)
    for event in (*told, *start.events):
        append_metrics(folder, event)
    yield from start.events
    for event in _train_or_report(request, folder, setup, start):
        append_metrics(folder, event)
        if isinstance(event, Finished):
            write_record(folder, setup.record | {"result": dataclasses.asdict(event)})
        yield event


def _fresh(request: Request, setup: Setup) -> State:
    return new_state(new_pairs(setup.targets, request.lora.rank, request.training.seed))


def _train_or_report(request: Request, folder: Path, setup: Setup, start: Start) -> Iterator[Event]:
    """Train and check; of a run that is finished already, do what is missing of its report."""
    checkpoints = Checkpoints(folder, setup.base.gguf.architecture, request.lora.alpha, setup.base.identity)
    state, dataset = start.state, setup.dataset
    training = [summary(state, checkpoints, None)] if state.finished else _train(request, setup, state, checkpoints)
    for event in training:
        if not isinstance(event, Finished):
            yield event
            continue
        finished = _served(event, dataset)
        if finished.adapter and not (finished.stopped_by or start.reported):
            chosen = dataset.validation.encoded or dataset.train.encoded
            yield from _check_in_llamacpp(setup.base, Path(finished.adapter), chosen, request.stop)
        yield finished


def _train(request: Request, setup: Setup, state: State, checkpoints: Checkpoints | None = None) -> Iterator[Event]:
    keep_freed_memory()
    job = Job(
        decoder=with_pairs(setup.decoder, state.pairs, request.lora.alpha / request.lora.rank),
        examples=setup.dataset.train.encoded,
        validation=setup.dataset.validation.encoded,
        config=request.training,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        method=Method(Workspace(MICRO_BATCH_TOKENS)),
    )
    yield _planned(request, job, state, setup.record["choices"])
    yield from train(job, state, checkpoints, request.stop)


def _served(finished: Finished, dataset: Dataset) -> Finished:
    """The adapter to serve is the one that the validation examples found best; without them, the last one."""
    best = finished.best_adapter if dataset.validation.encoded and not finished.stopped_by else None
    return dataclasses.replace(finished, adapter=best or finished.adapter)


def _check_in_llamacpp(
    base: Base, adapter: Path, encoded: Sequence[Encoded], stop: Callable[[], str | None]
) -> Iterator[Event]:
    if not llamacpp.available():
        yield Warned("not verified in llama.cpp: install it with pip install 'gguflora[llamacpp]'.")
        return
    if reason := stop():  # the adapter is written and whole: nothing is lost by leaving now
        yield Warned(f"not verified in llama.cpp: stopped by {reason}.")
        return
    try:
        yield verify(base, adapter, encoded)
        yield from [] if stop() else answers(base, adapter, encoded)
    except GgufloraError as error:  # as above: only the check could not be made
        yield Warned(f"the check in llama.cpp could not be made: {error}")


def _decoder(base: Base) -> Decoder:
    dtype, _ = choose_dtype()
    return load_decoder(base.gguf, base.spec, dtype)


def _planned(request: Request, job: Job, state: State, choices: dict[str, str]) -> Planned:
    stems = Counter(name.removesuffix(".weight").rsplit(".", 1)[-1] for name in state.pairs)
    return Planned(
        pairs=dict(stems),
        trainable_parameters=sum(pair.lora_a.numel() + pair.lora_b.numel() for pair in state.pairs.values()),
        rank=request.lora.rank,
        alpha=request.lora.alpha,
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        warmup_steps=job.warmup_steps,
        choices=choices,
    )


def _record(request: Request, base: Base, dataset: Dataset) -> dict[str, Any]:
    """What run.json holds: everything that the result depends on."""
    threads, why_threads = set_threads(request.training.threads)
    dtype, why_dtype = choose_dtype()
    best = "validation loss" if dataset.validation.encoded else "training loss of an epoch (nothing to validate on)"
    return {
        "model": {"path": str(base.gguf.path), "name": model_loaded(base).name} | dataclasses.asdict(base.identity),
        "data": {
            "train": encoded_hash(dataset.train.encoded),
            "validation": encoded_hash(dataset.validation.encoded),
        },
        "lora": dataclasses.asdict(request.lora) | {"target": list(request.lora.target)},
        "training": dataclasses.asdict(request.training),
        "environment": {
            "gguflora": version("gguflora"),
            **environment(threads),
            "compute dtype": str(dtype).removeprefix("torch."),
        },
        "choices": {
            "compute": f"{str(dtype).removeprefix('torch.')} ({why_dtype})",
            "weights": "dequantised once; the embedding stays packed",
            "kernels": "explicit forward and backward over kept buffers",
            "micro-batch": f"packed rows of at most {MICRO_BATCH_TOKENS} tokens",
            "threads": f"{threads} ({why_threads})",
            "best adapter": f"the one of the lowest {best}",
        },
    }
