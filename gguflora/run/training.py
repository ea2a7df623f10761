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
from gguflora.data import Encoded, Example, Named
from gguflora.errors import GgufloraError, MachineError
from gguflora.events import Event, Finished, MemoryPlanned, Planned, Progress, Warned, unseen
from gguflora.gguf import ChatSetting
from gguflora.model import Decoder, LoraPair, Workspace, load_decoder, with_pairs
from gguflora.report import append_metrics, keep_metrics_until
from gguflora.run.check_memory import packed_for_check
from gguflora.run.choices import Choices, choose, name_of
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, first_example, make_dataset
from gguflora.run.first_use import operations_ready
from gguflora.run.folder import check_folder, claim_folder, read_record, write_record
from gguflora.run.initial import file_hash, initial_pairs
from gguflora.run.machine import memory, reach, taken
from gguflora.run.memory_plan import Setting, load_of, ranks_of
from gguflora.run.opening import Base, model_loaded, open_base
from gguflora.run.setting import bound_product_caches, environment, set_threads
from gguflora.run.start import Start, resumed_start
from gguflora.run.template import chat_setting
from gguflora.run.tokens import Encoding
from gguflora.run.verify import answers, verify
from gguflora.train import Checkpoints, Job, State, first_batch, new_state, summary, train
from gguflora.train.room import is_out_of_memory

LESS_MEMORY = "give --memory with what it may take, and a setting is chosen that keeps to it."


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
        progress: told how far encoding is.
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
    progress: Progress = unseen


@dataclass(frozen=True)
class Setup:
    """All that is decided before training.

    Attributes:
        lora: as asked, or as the initial adapter says.
        pairs: of the fresh state.
        record: what run.json will hold.
        decoder: the base without pairs.
        choices: what was chosen.
        chat: what adapter files say of the template.
    """

    base: Base
    dataset: Dataset
    lora: LoraConfig
    pairs: dict[str, LoraPair]
    record: dict[str, Any]
    decoder: Decoder
    choices: Choices
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
    encoding = Encoding(request.training.threads, request.progress)
    dataset = make_dataset(base, request.examples, request.validation, request.data, request.training.seed, encoding)
    about_operations = yield from operations_ready(request.compute.kernels)
    about_data = _about_data(request, base, dataset)
    yield from about_data
    old = read_record(folder) if folder and request.resume else None
    bound_product_caches()
    load = load_of(dataset, ranks_of(pairs), request.training, request.compute)
    choices = choose(request.compute, base.gguf, base.spec, load, set_threads(request.training.threads), old)
    about_memory = _about_memory(choices)
    yield from about_memory
    decoder = loaded(base, choices.setting)
    setup = Setup(
        base=base,
        dataset=dataset,
        lora=lora,
        pairs=pairs,
        record=_record(request, base, dataset, lora, choices),
        decoder=decoder,
        choices=choices,
        chat=chat_setting(request.template),
    )
    outcome.base, outcome.alpha, outcome.chat = base, lora.file_alpha, setup.chat
    if request.dry_run:
        yield from _dry_run(request, setup)
        return
    if folder is None:
        outcome.state = _fresh(setup)
        yield from _train(request, setup, outcome.state)
        return
    with claim_folder(folder, request.resume):
        yield from _recorded(request, folder, setup, outcome, [opened, *about_operations, *about_data, *about_memory])


def _about_data(request: Request, base: Base, dataset: Dataset) -> list[Event]:
    overlap = f"{dataset.overlap} validation examples are trained as well: their loss measures memory."
    warned = [Warned(overlap)] if dataset.overlap else []
    if base.template.notice and dataset.conversations:
        warned.append(Warned(base.template.notice))
    return [data_ready(dataset, request.bad_records), *warned, first_example(base, dataset.train.encoded[0])]


def _about_memory(choices: Choices) -> list[Event]:
    """The plan of memory, and whether there is as much."""
    if choices.plan is None:
        return []  # autograd's own graph
    planned = MemoryPlanned(dict(choices.plan.parts), reach(memory(), taken()).size, choices.plan.mapped)
    if planned.total <= planned.usable:
        return [planned]
    return [planned, Warned("training may take more memory than is free; " + LESS_MEMORY)]


def loaded(base: Base, setting: Setting) -> Decoder:
    """The base's weights as `setting` has them.

    Raises:
        FileError: a tensor holds values that are not finite.
        MachineError: there is no memory for them.
    """
    try:
        return load_decoder(base.gguf, base.spec, setting.dtype, setting.packed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        less = (
            "raise the limit or free some" if setting.packed else "use --weights packed, which reads them from the file"
        )
        raise MachineError(f"memory ran out while the weights of {base.gguf.path} were loaded; {less}.") from error


def _recorded(request: Request, folder: Path, setup: Setup, outcome: Outcome, told: list[Event]) -> Iterator[Event]:
    """The part of a run that writes; `told` goes into the metrics file as well."""
    start = Start(_fresh(setup), [], reported=False)
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


def _fresh(setup: Setup) -> State:
    return new_state(setup.pairs, setup.choices.setting.rows, setup.choices.setting.recompute)


def _dry_run(request: Request, setup: Setup) -> Iterator[Event]:
    """Plan and first batch; nothing is updated or written."""
    state = _fresh(setup)
    job = make_job(request, setup.dataset, setup.lora, setup.decoder, setup.choices, state)
    yield _planned(setup, job, state)
    yield first_batch(job, state)


def _train_or_report(request: Request, folder: Path, setup: Setup, start: Start) -> Iterator[Event]:
    """Train and check; of a run that is finished already, do what is missing of its report."""
    checkpoints = Checkpoints(
        folder, setup.base.gguf.architecture, setup.lora.file_alpha, setup.base.identity, setup.chat
    )
    state, dataset = start.state, setup.dataset
    training = [summary(state, checkpoints, None)] if state.finished else _train(request, setup, state, checkpoints)
    finished = None
    for event in training:
        if isinstance(event, Finished):
            finished = _served(event, dataset)
        else:
            yield event
    if finished is None:
        return
    del training  # with the buffers in it: the check has weights of its own
    if finished.adapter and not (finished.stopped_by or start.reported):
        chosen = dataset.validation.encoded or dataset.train.encoded
        ask = request.data.train_on != "everything"  # what is trained then has no prompt
        yield from _check_in_llamacpp(request, setup, Path(finished.adapter), chosen, ask=ask)
    yield finished


def _train(request: Request, setup: Setup, state: State, checkpoints: Checkpoints | None = None) -> Iterator[Event]:
    job = make_job(request, setup.dataset, setup.lora, setup.decoder, setup.choices, state)
    yield _planned(setup, job, state)
    yield from train(job, state, checkpoints, request.stop)


def make_job(
    request: Request, dataset: Dataset, lora: LoraConfig, decoder: Decoder, choices: Choices, state: State
) -> Job:
    """All that a run needs besides its state, whose limits are lowered to what was chosen.

    Args:
        request: what is asked for.
        dataset: what is trained and measured.
        lora: as asked, or as the initial adapter says.
        decoder: the base without pairs.
        choices: what was chosen.
        state: that it begins with; its pairs come onto the decoder.
    """
    # Going on with a smaller limit is possible, with a larger one than was found to fit it is not.
    state.micro_batch_tokens = min(state.micro_batch_tokens, choices.setting.rows)
    state.recompute = state.recompute or choices.setting.recompute
    # Buffers no longer than the rows that come: a limit on private memory counts what is reserved and never touched.
    room = min(state.micro_batch_tokens, choices.row)
    return Job(
        decoder=with_pairs(decoder, state.pairs, lora.scale),
        examples=dataset.train.encoded,
        validation=dataset.validation.encoded,
        config=request.training,
        work=Workspace(room, choices.operations) if choices.operations else None,
        dropout=lora.dropout,
        packing=request.compute.packing == "on",
    )


def _served(finished: Finished, dataset: Dataset) -> Finished:
    """The adapter to serve is the one that the validation examples found best; without them, the last one."""
    best = finished.best_adapter if dataset.validation.encoded and not finished.stopped_by else None
    return dataclasses.replace(finished, adapter=best or finished.adapter)


def _check_in_llamacpp(
    request: Request, setup: Setup, adapter: Path, encoded: Sequence[Encoded], *, ask: bool
) -> Iterator[Event]:
    if not llamacpp.available():
        yield Warned("not verified in llama.cpp: install it with pip install 'gguflora[llamacpp]'.")
        return
    if reason := request.stop():  # the adapter is written and whole: nothing is lost by leaving now
        yield Warned(f"not verified in llama.cpp: stopped by {reason}.")
        return
    try:
        packed = packed_for_check(setup.base, encoded, request.compute)
        yield verify(setup.base, adapter, encoded, packed=packed)
        yield from [] if request.stop() or not ask else answers(setup.base, adapter, encoded)
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
        "chosen": choices.record,
        "environment": {
            "gguflora": version("gguflora"),
            **environment(torch.get_num_threads()),
            "compute dtype": name_of(choices.setting.dtype),
            "kernels": choices.reasons["kernels"],
        },
        "choices": choices.reasons | {"best adapter": f"the one of the lowest {best}"},
    }
