"""What `gguflora plan` does: the plan of a run's memory, and the time of its first steps, with nothing written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gguflora.arch import ModelSpec
from gguflora.data import lengths_of
from gguflora.errors import UsageError
from gguflora.events import Halved, StepDone
from gguflora.model import LoraPair
from gguflora.report.planned import MachineFacts, PlanFacts, TimeFacts
from gguflora.run.choices import Choices, choose
from gguflora.run.dataset import Dataset, make_dataset
from gguflora.run.first_use import wait_for_operations
from gguflora.run.initial import initial_pairs
from gguflora.run.machine import memory, reach, taken
from gguflora.run.memory_plan import Load, load_of, ranks_of, row_tokens
from gguflora.run.opening import Base, model_loaded, open_base
from gguflora.run.setting import bound_product_caches, set_threads
from gguflora.run.tokens import Encoding
from gguflora.run.training import Request, loaded, make_job
from gguflora.train import Job, State, new_state, train
from gguflora.train.memory import peak_bytes

_FULL = 2**40  # tokens of a step that fills every row


def plan_run(request: Request, steps: int) -> PlanFacts:
    """What a run would take, and with `steps` how long, measured over so many of its first steps after one.

    Without examples it is the memory alone, of full rows.

    Raises:
        GgufloraError: as training would before its first step, or in it.
    """
    if steps < 0:
        raise UsageError(f"--time-steps must be at least 0, not {steps}.")
    base = open_base(request.model, request.template)
    lora, pairs = initial_pairs(base, request.lora, request.training.seed, request.init_adapter)
    dataset = None
    if request.examples:
        how, seed = Encoding(request.training.threads, request.progress), request.training.seed
        dataset = make_dataset(base, request.examples, request.validation, request.data, seed, how)
    load = _load(request, base.spec, dataset, pairs)
    bound_product_caches()
    wait_for_operations(request.compute.kernels)
    choices = choose(request.compute, base.gguf, base.spec, load, set_threads(request.training.threads))
    facts = _facts(base, load, choices, known=dataset is not None)
    if dataset is None or not steps:
        return facts
    decoder = loaded(base, choices.setting)
    state = new_state(pairs, choices.setting.rows, choices.setting.recompute)
    job = make_job(request, dataset, lora, decoder, choices, state)
    return dataclasses.replace(facts, time=time_steps(job, state, steps))


def time_steps(job: Job, state: State, steps: int) -> TimeFacts:
    """Train some steps, of which all but the first are timed (the first too where there is no other)."""
    job = dataclasses.replace(job, validation=[])
    done: list[StepDone] = []
    shortened = False
    for event in train(job, state, None, lambda: None):
        shortened = shortened or isinstance(event, Halved)
        if isinstance(event, StepDone):
            done.append(event)
        if len(done) > steps:
            break
    timed = done[1:] or done
    tokens = sum(step.tokens for step in timed)
    seconds = sum(step.tokens / step.tokens_per_second for step in timed)
    run_tokens = int(lengths_of(job.examples).sum()) * job.total_steps / job.plan.ends[0]
    return TimeFacts(
        steps=len(timed),
        warmed_up=len(done) > len(timed),
        tokens=tokens,
        seconds=seconds,
        total_steps=job.total_steps,
        run_tokens=round(run_tokens),
        run_seconds=run_tokens * seconds / tokens,
        peak=peak_bytes(),
        shortened=shortened,
    )


def _load(request: Request, spec: ModelSpec, dataset: Dataset | None, pairs: Mapping[str, LoraPair]) -> Load:
    ranks = ranks_of(pairs)
    if dataset is not None:
        return load_of(dataset, ranks, request.training, request.compute)
    if request.compute.packing == "on":
        return Load(ranks, _FULL, None)
    return Load(ranks, 1, min(request.data.max_length, spec.context_length))


def _facts(base: Base, load: Load, choices: Choices, known: bool) -> PlanFacts:
    loaded = model_loaded(base)
    found, own = memory(), taken()
    now = reach(found, own)
    row = row_tokens(load, choices.setting.rows)
    return PlanFacts(
        model=loaded.name,
        architecture=loaded.architecture,
        parameters=loaded.parameters,
        path=loaded.path,
        file_bytes=loaded.file_bytes,
        choices=choices.reasons,
        row=row,
        longest=load.longest or row,
        from_data=known,
        parts=choices.plan.parts if choices.plan else {},
        mapped=choices.plan.mapped if choices.plan else 0,
        machine=MachineFacts(**dataclasses.asdict(found), reach=now.size, whose=now.whose),
        time=None,
    )
