"""A whole training run: open, prepare, plan, train, verify, report. The command line and LoraTrainer both call it.

`run` is a generator of events, like the training loop inside it; nothing is printed here.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gguflora import llamacpp
from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TemplateConfig, TrainingConfig
from gguflora.data import Encoded, Example, Named, lengths_of
from gguflora.errors import GgufloraError
from gguflora.events import Event, Finished, MemoryPlanned, Planned, Warned
from gguflora.gguf import ChatSetting
from gguflora.kernels.operations import Operations
from gguflora.model import Decoder, LoraPair, Workspace, load_decoder, with_pairs
from gguflora.report import append_metrics, keep_metrics_until
from gguflora.run.choices import Choices, choose
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, first_example, make_dataset
from gguflora.run.folder import check_folder, claim_folder, read_record, write_record
from gguflora.run.initial import file_hash, initial_pairs
from gguflora.run.machine import memory
from gguflora.run.memory_plan import LESS_MEMORY, Setting, memory_plan
from gguflora.run.opening import Base, model_loaded, open_base
from gguflora.run.setting import bound_product_caches, environment, set_threads
from gguflora.run.start import Start, resumed_start
from gguflora.run.template import chat_setting
from gguflora.run.verify import answers, verify
from gguflora.train import Checkpoints, Job, State, first_batch, new_state, summary, train
from gguflora.train.memory import resident_bytes


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        examples: to train, gone through several times; split according to `data` unless `validation` is given.
        output_dir: where checkpoints go; None writes nothing.
        resume: go on from the newest state in `output_dir`.
        stop: asked after each step for a reason to stop (a signal's name), or None.
        init_adapter: an adapter to go on from; its rank, alpha and tensors are taken.
        dry_run: show plan, data and the first batch, then end; nothing is written.
        bad_records: what was said about records that were left out when the examples were read.
    """

    model: Path
    examples: Iterable[Example]
    validation: Iterable[Example] | None
    lora: LoraConfig
    data: DataConfig
    training: TrainingConfig
    output_dir: Path | None
    compute: ComputeConfig = ComputeConfig()  # noqa: RUF009 (frozen)
    template: TemplateConfig = TemplateConfig()  # noqa: RUF009 (frozen)
    resume: bool = False
    stop: Callable[[], str | None] = lambda: None
    init_adapter: Path | None = None
    dry_run: bool = False
    bad_records: Named = field(default_factory=Named)


@dataclass(frozen=True)
class Setup:
    """All that is decided before training.

    Attributes:
        lora: as asked, or as the initial adapter says.
        pairs: of the fresh state.
        record: what run.json will hold.
        decoder: the base without pairs.
        operations: what runs between the products; None for the reference.
        chat: what adapter files say of the template.
    """

    base: Base
    dataset: Dataset
    lora: LoraConfig
    pairs: dict[str, LoraPair]
    record: dict[str, Any]
    decoder: Decoder
    operations: Operations | None
    chat: ChatSetting


@dataclass
class Outcome:
    """What a run leaves in memory, filled in when training starts: the state, and what an adapter says beside it."""

    state: State | None = None
    base: Base | None = None
    alpha: float | None = None
    chat: ChatSetting = ChatSetting()  # noqa: RUF009 (frozen)


def run(request: Request, outcome: Outcome) -> Generator[Event, None, None]:
    """Do the whole run; the last event is Finished. With an output folder, its metrics file has every event.

    Nothing is written before all that was given is known to be usable, the weights included.

    Raises:
        GgufloraError: what was given, the machine or the numbers made it impossible; nothing half-written is left.
    """
    folder = None if request.dry_run else request.output_dir
    if folder:
        check_folder(folder, request.resume)
    base = open_base(request.model, request.template)
    lora, pairs = initial_pairs(base, request.lora, request.training.seed, request.init_adapter)
    opened = model_loaded(base)
    yield opened
    dataset = make_dataset(base, request.examples, request.validation, request.data, request.training.seed)
    about_data = _about_data(request, base, dataset)
    yield from about_data
    old = read_record(folder) if folder and request.resume else None
    bound_product_caches()
    choices = choose(request.compute, base.spec, set_threads(request.training.threads), old)
    about_memory = _about_memory(request, base, dataset, pairs, choices)
    yield from about_memory
    decoder = load_decoder(base.gguf, base.spec, choices.dtype, choices.packed)
    setup = Setup(
        base=base,
        dataset=dataset,
        lora=lora,
        pairs=pairs,
        record=_record(request, base, dataset, lora, choices),
        decoder=decoder,
        operations=choices.operations,
        chat=chat_setting(request.template),
    )
    outcome.base, outcome.alpha, outcome.chat = base, lora.file_alpha, setup.chat
    if request.dry_run:
        yield from _dry_run(request, setup)
        return
    if folder is None:
        outcome.state = _fresh(request, setup)
        yield from _train(request, setup, outcome.state)
        return
    with claim_folder(folder, request.resume):
        yield from _recorded(request, folder, setup, outcome, [opened, *about_data, *about_memory])


def _about_data(request: Request, base: Base, dataset: Dataset) -> list[Event]:
    overlap = f"{dataset.overlap} validation examples are trained as well: their loss measures memory."
    warned = [Warned(overlap)] if dataset.overlap else []
    if base.template.notice and dataset.conversations:
        warned.append(Warned(base.template.notice))
    return [data_ready(dataset, request.bad_records), *warned, first_example(base, dataset.train.encoded[0])]


def _about_memory(
    request: Request, base: Base, dataset: Dataset, pairs: dict[str, LoraPair], choices: Choices
) -> list[Event]:
    if choices.operations is None:
        return []  # autograd's own graph
    compute = request.compute
    longest = int(lengths_of(dataset.train.encoded).max())
    step = request.training.batch_tokens or (request.training.batch_size or 1) * longest
    tokens = min(compute.micro_batch_tokens, step) if compute.packing == "on" else 0
    setting = Setting(choices.dtype, choices.packed, tokens, longest, compute.recompute == "on")
    parts = {"process": resident_bytes()} | memory_plan(base.gguf, base.spec, pairs, setting)
    planned = MemoryPlanned(parts, memory().usable)
    if planned.total <= planned.usable:
        return [planned]
    return [planned, Warned("training may take more memory than is free; " + LESS_MEMORY)]


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
    return new_state(setup.pairs, request.compute.micro_batch_tokens, request.compute.recompute == "on")


def _dry_run(request: Request, setup: Setup) -> Iterator[Event]:
    """Plan and first batch; nothing is updated or written."""
    state = _fresh(request, setup)
    job = _job(request, setup, state)
    yield _planned(setup, job, state)
    yield first_batch(job, state)


def _train_or_report(request: Request, folder: Path, setup: Setup, start: Start) -> Iterator[Event]:
    """Train and check; of a run that is finished already, do what is missing of its report."""
    checkpoints = Checkpoints(
        folder, setup.base.gguf.architecture, setup.lora.file_alpha, setup.base.identity, setup.chat
    )
    state, dataset = start.state, setup.dataset
    training = [summary(state, checkpoints, None)] if state.finished else _train(request, setup, state, checkpoints)
    for event in training:
        if not isinstance(event, Finished):
            yield event
            continue
        finished = _served(event, dataset)
        if finished.adapter and not (finished.stopped_by or start.reported):
            chosen = dataset.validation.encoded or dataset.train.encoded
            ask = request.data.train_on != "everything"  # what is trained then has no prompt
            yield from _check_in_llamacpp(setup.base, Path(finished.adapter), chosen, request.stop, ask=ask)
        yield finished


def _train(request: Request, setup: Setup, state: State, checkpoints: Checkpoints | None = None) -> Iterator[Event]:
    job = _job(request, setup, state)
    yield _planned(setup, job, state)
    yield from train(job, state, checkpoints, request.stop)


def _job(request: Request, setup: Setup, state: State) -> Job:
    compute = request.compute
    # Going on with a smaller limit is possible, with a larger one than was found to fit it is not.
    state.micro_batch_tokens = min(state.micro_batch_tokens, compute.micro_batch_tokens)
    state.recompute = state.recompute or compute.recompute == "on"
    return Job(
        decoder=with_pairs(setup.decoder, state.pairs, setup.lora.scale),
        examples=setup.dataset.train.encoded,
        validation=setup.dataset.validation.encoded,
        config=request.training,
        work=Workspace(state.micro_batch_tokens, setup.operations) if setup.operations else None,
        dropout=setup.lora.dropout,
        packing=compute.packing == "on",
    )


def _served(finished: Finished, dataset: Dataset) -> Finished:
    """The adapter to serve is the one that the validation examples found best; without them, the last one."""
    best = finished.best_adapter if dataset.validation.encoded and not finished.stopped_by else None
    return dataclasses.replace(finished, adapter=best or finished.adapter)


def _check_in_llamacpp(
    base: Base, adapter: Path, encoded: Sequence[Encoded], stop: Callable[[], str | None], *, ask: bool
) -> Iterator[Event]:
    if not llamacpp.available():
        yield Warned("not verified in llama.cpp: install it with pip install 'gguflora[llamacpp]'.")
        return
    if reason := stop():  # the adapter is written and whole: nothing is lost by leaving now
        yield Warned(f"not verified in llama.cpp: stopped by {reason}.")
        return
    try:
        yield verify(base, adapter, encoded)
        yield from [] if stop() or not ask else answers(base, adapter, encoded)
    except GgufloraError as error:  # as above: only the check could not be made
        yield Warned(f"the check in llama.cpp could not be made: {error}")


def _planned(setup: Setup, job: Job, state: State) -> Planned:
    stems = Counter(name.removesuffix(".weight").rsplit(".", 1)[-1] for name in state.pairs)
    return Planned(
        pairs=dict(stems),
        trainable_parameters=sum(pair.lora_a.numel() + pair.lora_b.numel() for pair in state.pairs.values()),
        rank=setup.lora.rank,
        alpha=setup.lora.file_alpha,
        total_steps=job.total_steps,
        steps_per_epoch=job.plan.ends[0],
        warmup_steps=job.warmup_steps,
        choices=setup.record["choices"],
    )


def _record(request: Request, base: Base, dataset: Dataset, lora: LoraConfig, choices: Choices) -> dict[str, Any]:
    """What run.json holds: everything that the result depends on."""
    best = "validation loss" if dataset.validation.encoded else "training loss of an epoch (nothing to validate on)"
    adapter = request.init_adapter
    chat = dataclasses.asdict(chat_setting(request.template))
    return {
        "model": {"path": str(base.gguf.path), "name": model_loaded(base).name} | dataclasses.asdict(base.identity),
        "data": {
            "train": encoded_hash(dataset.train.encoded),
            "validation": encoded_hash(dataset.validation.encoded),
            **{f"template {name}": value for name, value in chat.items() if value},
        },
        "lora": dataclasses.asdict(lora)
        | {"target": list(lora.target), "init_adapter": file_hash(adapter) if adapter else None},
        "training": dataclasses.asdict(request.training),
        "compute": dataclasses.asdict(request.compute),
        "environment": {
            "gguflora": version("gguflora"),
            **environment(torch.get_num_threads()),
            "compute dtype": str(choices.dtype).removeprefix("torch."),
            "kernels": choices.reasons["kernels"],
        },
        "choices": choices.reasons | {"best adapter": f"the one of the lowest {best}"},
    }
