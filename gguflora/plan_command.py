"""The command that says what `train` would take, thin: `gguflora plan`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

from gguflora.run_options import Data, Flat, RunOptions, requested
from gguflora.signals import signal_watch


def plan(
    model: Path,
    data: Annotated[list[str], Data] = [],  # noqa: B006 (never changed; cyclopts wants a list)
    /,
    *,
    options: Annotated[RunOptions, Flat] = RunOptions(),  # noqa: B008 (frozen)
    time_steps: int = 3,
    no_time: bool = False,
    json: bool = False,
) -> int:
    """Show what training MODEL on DATA would take with these options: memory part by part, and time.

    Nothing is written. Without DATA it is the memory of full rows, of examples no longer than a row.

    Args:
        model: GGUF file.
        data: Datasets, as for train.
        options: As for train.
        time_steps: Steps that are timed after one that is not; they are really trained, and thrown away.
        no_time: Do not load the weights and train these steps.
        json: Print one JSON object on one line.
    """
    from rich.console import Console

    from gguflora.report import EncodingProgress
    from gguflora.report.planned import as_json, lines_of
    from gguflora.run.planning import plan_run

    steps = time_steps if data and not no_time else 0
    with signal_watch(), EncodingProgress(Console(stderr=True)) as progress:
        facts = plan_run(requested(model, data, options, output_dir=None, progress=progress), steps)
    if json:
        print(json_text.dumps(as_json(facts)), flush=True)
    else:
        for line in lines_of(facts):
            print(line)
    return 0
