"""The options that `train` and `plan` share, so that a plan is made by another word in the same command."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gguflora.config import ComputeConfig, DataConfig, LoraConfig, ReadConfig, TemplateConfig, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguflora.data import Example, Named
    from gguflora.run.training import Request

Flat = Parameter(name="*")
Data = Parameter(allow_leading_hyphen=True)  # a lone hyphen is standard input


@dataclass(frozen=True)
class RunOptions:
    """Everything that decides what a run computes, in its groups."""

    lora: Annotated[LoraConfig, Flat] = field(default_factory=LoraConfig)
    """What the adapter is."""

    reading: Annotated[ReadConfig, Flat] = field(default_factory=ReadConfig)
    """How records become examples."""

    data: Annotated[DataConfig, Flat] = field(default_factory=DataConfig)
    """Which examples are trained."""

    template: Annotated[TemplateConfig, Flat] = field(default_factory=TemplateConfig)
    """How conversations become text."""

    training: Annotated[TrainingConfig, Flat] = field(default_factory=TrainingConfig)
    """How it is trained."""

    compute: Annotated[ComputeConfig, Flat] = field(default_factory=ComputeConfig)
    """How the machine is used."""

    init_adapter: Path | None = None
    """Adapter to go on from; its rank, alpha and tensors are taken."""


def opened(
    data: list[str], reading: ReadConfig, validation: Path | str | None, bad_records: Named
) -> tuple[Iterable[Example], Iterable[Example] | None]:
    """The examples of a command line, and those to validate on, which no source's weight is for; both are read later.

    Args:
        data: datasets, as they were named; none is none.
        reading: how records become examples.
        validation: another dataset, or None.
        bad_records: gets the sources of those that are left out.
    """
    from gguflora.data import open_examples

    examples = open_examples(data, reading, bad_records.append) if data else ()
    measured = replace(reading, source_weight=())
    return examples, open_examples(validation, measured, bad_records.append) if validation else None


def requested(model: Path, data: list[str], options: RunOptions, **others: Any) -> Request:
    """The run that a command line asks for.

    Args:
        model: the GGUF file.
        data: datasets to train on, as they were named; a plan can do without.
        options: what decides the run.
        others: fields of Request that are no such options.
    """
    from gguflora.data import Named
    from gguflora.run.training import Request

    bad_records = Named()
    examples, validation = opened(data, options.reading, options.data.validation, bad_records)
    return Request(
        model=model,
        examples=examples,
        validation=validation,
        lora=options.lora,
        data=options.data,
        template=options.template,
        training=options.training,
        compute=options.compute,
        init_adapter=options.init_adapter,
        bad_records=bad_records,
        **others,
    )
