"""The commands that look at a dataset, thin: `gguflora data show` and `gguflora data check`."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App

from gguflora.config import DataConfig, ReadConfig, TemplateConfig, TrainingConfig
from gguflora.run_options import Data, Flat, opened
from gguflora.signals import signal_watch

data_app = App(name="data", help="Look at a dataset as MODEL would see it; nothing is trained.")


@data_app.command(name="show")
def data_show(
    model: Path,
    data: Annotated[list[str], Data],
    /,
    *,
    reading: Annotated[ReadConfig, Flat] = ReadConfig(),  # noqa: B008 (frozen)
    data_config: Annotated[DataConfig, Flat] = DataConfig(),  # noqa: B008 (frozen)
    template: Annotated[TemplateConfig, Flat] = TemplateConfig(),  # noqa: B008 (frozen)
    ids: bool = False,
    limit: int = 5,
) -> int:
    """Print the examples in DATA as the model sees them; what is trained stands out (in brackets without colours).

    Args:
        model: GGUF file.
        data: Datasets, as for train.
        reading: How records become examples.
        data_config: Which examples are trained.
        template: How conversations become text.
        ids: One token a line, with its id; * is trained.
        limit: How many examples.
    """
    from rich.console import Console

    from gguflora.data import open_examples
    from gguflora.report.shown import shown
    from gguflora.report.text import harmless
    from gguflora.run.data_check import show

    console = Console(highlight=False)

    def warn(bad_record: str) -> None:
        print(f"skipped: {harmless(bad_record)}", file=sys.stderr)

    examples = open_examples(data, reading, warn)
    for example in show(model, examples, data_config, template, limit):
        console.print(shown(example, ids=ids, colour=console.is_terminal), soft_wrap=True)
    return 0


@data_app.command(name="check")
def data_check(  # noqa: PLR0913 (one parameter for each group of options)
    model: Path,
    data: Annotated[list[str], Data],
    /,
    *,
    reading: Annotated[ReadConfig, Flat] = ReadConfig(),  # noqa: B008 (frozen)
    data_config: Annotated[DataConfig, Flat] = DataConfig(),  # noqa: B008 (frozen)
    template: Annotated[TemplateConfig, Flat] = TemplateConfig(),  # noqa: B008 (frozen)
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    epochs: int = TrainingConfig.epochs,
    seed: int = TrainingConfig.seed,
    json: bool = False,
) -> int:
    """Print the figures of DATA as train would use it: lengths, what is skipped and why, repeats, steps.

    Args:
        model: GGUF file.
        data: Datasets, as for train.
        reading: How records become examples.
        data_config: Which examples are trained.
        template: How conversations become text.
        batch_size: Examples in a step; 4 without it and --batch-tokens.
        batch_tokens: Tokens in a step instead.
        epochs: Times that each example is trained.
        seed: Decides the split.
        json: Print one JSON object on one line.
    """
    from rich.console import Console

    from gguflora.data import Named
    from gguflora.report import EncodingProgress
    from gguflora.report.checked import as_json, lines_of
    from gguflora.run.data_check import check

    bad_records = Named()
    examples, validation = opened(data, reading, data_config.validation, bad_records)
    training = TrainingConfig(batch_size=batch_size, batch_tokens=batch_tokens, epochs=epochs, seed=seed)
    with signal_watch(), EncodingProgress(Console(stderr=True)) as progress:
        facts = check(model, examples, validation, data_config, template, training, bad_records, progress)
    if json:
        print(json_text.dumps(as_json(facts)), flush=True)
    else:
        for line in lines_of(facts):
            print(line)
    return 0
