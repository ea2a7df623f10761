"""A whole training run: open, prepare, plan, train, verify, report. The command line and LoraTrainer both call it.

`run` is a generator of events, like the training loop inside it; nothing is printed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguflora import llamacpp
from gguflora.arch import LinearSpec, resolve_targets
from gguflora.config import DataConfig, LoraConfig, TrainingConfig
from gguflora.data import Encoded, Example
from gguflora.errors import GgufloraError
from gguflora.events import Event, Finished, Planned, Resumed, Warned
from gguflora.kernels import choose_dtype, choose_kernels
from gguflora.model import Decoder, Workspace, load_decoder, new_pairs, with_pairs
from gguflora.report import append_metrics, keep_metrics_until
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, first_example, make_dataset
from gguflora.run.folder import check_folder, check_same_run, claim_folder, read_record, write_record
from gguflora.run.opening import Base, model_loaded, open_base
from gguflora.run.setting import environment, keep_freed_memory, set_threads
from gguflora.run.verify import answers, verify
from gguflora.train.step import Method
from gguflora.train import Checkpoints, Job, State, load_newest_state, new_state, summary, train

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


@dataclass
class Outcome:
    """What a run leaves in memory, filled in when training starts: the state, and the base it is for."""

    state: State | None = None
    base: Base | None = None


def run(request: Request, outcome: Outcome) -> Iterator[Event]:
    """Do the whole run; the last event is Finished.

    Raises:
        GgufloraError: what was given, the machine or the numbers made it impossible; nothing half-written is left.
    """
    if request.output_dir:
        check_folder(request.output_dir, request.resume)
    base = open_base(request.model)
    targets = resolve_targets(base.spec, request.lora.target, request.lora.rank)
    yield model_loaded(base)
    dataset = make_dataset(base, request.examples, request.validation, request.data, request.training.seed)
    yield data_ready(dataset)
    if dataset.overlap:
        yield Warned(f"{dataset.overlap} validation examples are trained as well: their loss measures memory.")
    yield first_example(base, dataset.train.encoded[0])
    outcome.base = base
    with claim_folder(request.output_dir) if request.output_dir else contextlib.nullcontext():
        yield from _claimed(request, outcome, base, dataset, targets)


def _claimed(
    request: Request, outcome: Outcome, base: Base, dataset: Dataset, targets: tuple[LinearSpec, ...]
) -> Iterator[Event]:
    """The part of a run that writes: everything from here on is also recorded in the metrics file."""
    record = _record(request, base, dataset)
    state, opening = _state(request, targets, record)
    outcome.state = state
    folder = request.output_dir
    for event in opening:
        yield event
    if folder:
        keep_metrics_until(folder, state.step)
        write_record(folder, record)
    for event in _train_and_verify(request, base, dataset, state, record):
        if folder:
            append_metrics(folder, event)
            if isinstance(event, Finished):
                write_record(folder, record | {"result": dataclasses.asdict(event)})
        yield event


def _state(request: Request, targets: tuple[LinearSpec, ...], record: dict[str, Any]) -> tuple[State, list[Event]]:
    """The state to start from, and what to tell about it."""
    fresh = new_state(new_pairs(targets, request.lora.rank, request.training.seed))
    old = read_record(request.output_dir) if request.resume and request.output_dir else None
    if not request.output_dir or old is None:
        return fresh, []
    events: list[Event] = [Warned(text) for text in check_same_run(request.output_dir, old, record)]
    loaded = load_newest_state(request.output_dir)
    events += [Warned(f"a damaged state was passed over: {name}") for name in loaded.damaged]
    if loaded.state is None:
        return fresh, [*events, Warned("nothing was saved yet: starting from step 0.")]
    return loaded.state, [*events, Resumed(loaded.state.step, loaded.state.finished)]


def _train_and_verify(
    request: Request, base: Base, dataset: Dataset, state: State, record: dict[str, Any]
) -> Iterator[Event]:
    alpha = request.lora.alpha
    folder = request.output_dir
    checkpoints = Checkpoints(folder, base.gguf.architecture, alpha, base.identity) if folder else None
    if state.finished:
        yield _served(summary(state, checkpoints, None), dataset)
        return
    job = _job(request, base, dataset, state)
    yield _planned(request, job, state, record["choices"])
    finished: Finished | None = None
    for event in train(job, state, checkpoints, request.stop):
        if isinstance(event, Finished):
            finished = _served(event, dataset)
        else:
            yield event
    assert finished is not None
    if finished.adapter and not finished.stopped_by:
        yield from _check_in_llamacpp(base, Path(finished.adapter), job.validation or job.examples)
    yield finished


def _served(finished: Finished, dataset: Dataset) -> Finished:
    """The adapter to serve is the one that the validation examples found best; without them, the last one."""
    best = finished.best_adapter if dataset.validation.encoded and not finished.stopped_by else None
    return dataclasses.replace(finished, adapter=best or finished.adapter)


def _check_in_llamacpp(base: Base, adapter: Path, encoded: Sequence[Encoded]) -> Iterator[Event]:
    if not llamacpp.available():
        yield Warned("not verified in llama.cpp: install it with pip install 'gguflora[llamacpp]'.")
        return
    try:
        yield verify(base, adapter, encoded)
        yield from answers(base, adapter, encoded)
    except GgufloraError as error:  # the adapter is written and whole; only the check could not be made
        yield Warned(f"the check in llama.cpp could not be made: {error}")


def _job(request: Request, base: Base, dataset: Dataset, state: State) -> Job:
    keep_freed_memory()
    return Job(
        decoder=_decoder(request, base, state),
        examples=dataset.train.encoded,
        validation=dataset.validation.encoded,
        config=request.training,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        method=Method(Workspace(MICRO_BATCH_TOKENS)),
    )


def _decoder(request: Request, base: Base, state: State) -> Decoder:
    dtype, _ = choose_dtype()
    decoder = load_decoder(base.gguf, base.spec, dtype, choose_kernels(dtype))
    return with_pairs(decoder, state.pairs, request.lora.alpha / request.lora.rank)


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
    return {
        "gguflora": version("gguflora"),
        "model": {"path": str(base.gguf.path), "name": model_loaded(base).name} | dataclasses.asdict(base.identity),
        "data": {
            "train": encoded_hash(dataset.train.encoded),
            "validation": encoded_hash(dataset.validation.encoded),
        },
        "lora": dataclasses.asdict(request.lora) | {"target": list(request.lora.target)},
        "training": dataclasses.asdict(request.training),
        "environment": environment(threads) | {"compute dtype": str(dtype).removeprefix("torch.")},
        "choices": {
            "compute": f"{str(dtype).removeprefix('torch.')} ({why_dtype})",
            "weights": "dequantised once; the embedding stays packed",
            "kernels": choose_kernels(dtype).name,
            "micro-batch": f"packed rows of at most {MICRO_BATCH_TOKENS} tokens",
            "threads": f"{threads} ({why_threads})",
        },
    }
