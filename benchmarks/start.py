"""How long it is from the command to the first step of training, on the demo's model and data, and what it waits for.

    python -m benchmarks.start

Three runs: with empty caches (a machine's first), with compiled operations (the first with this model and these data),
and once more. Each event is stamped when its line is there, so a line says how long all before it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.notes.demo import HERE, OPTIONS, smollm2

SHOWN = ("model_loaded", "compiling", "data_ready", "memory_planned", "planned", "evaluated", "step_done")
RUNS = ("first on the machine", "first with the model and data", "again")


def main() -> None:
    """Time the three runs and print them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {run: seconds_to_events(folder, run) for run in RUNS[:1]}
        (folder / "cache").rename(folder / "used")
        runs |= {run: seconds_to_events(folder, run) for run in RUNS[1:]}
    print(f"{'seconds to':16}" + "".join(f"{run:>32}" for run in RUNS))
    for event in SHOWN:
        times = (f"{seconds[event]:.2f}" if event in seconds else "-" for seconds in runs.values())
        print(f"{event:16}" + "".join(f"{text:>32}" for text in times))


def seconds_to_events(folder: Path, run: str) -> dict[str, float]:
    """Train one step; seconds from the start to the first event of each kind.

    Args:
        folder: with the caches.
        run: names the output folder.
    """
    caches = {"NUMBA_CACHE_DIR": str(folder / "numba"), "XDG_CACHE_HOME": str(folder / "cache")}
    data, output = str(HERE / "train.jsonl"), str(folder / run)
    command = [sys.executable, "-m", "gguflora", "train", str(smollm2()), data, "--output-dir", output, *OPTIONS]
    started = time.monotonic()
    seconds: dict[str, float] = {}
    with subprocess.Popen(
        [*command, "--max-steps", "1", "--json"],
        env=os.environ | caches,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            seconds.setdefault(json.loads(line)["event"], time.monotonic() - started)
            if "step_done" in seconds:  # saving and the check in llama.cpp are not asked for
                process.kill()
    return seconds


if __name__ == "__main__":
    main()
