"""gguflora beside PEFT: speed, share of the machine's limit, memory and loss, in one run on one machine.

    python -m benchmarks.peft_comparison            about 14 minutes on two quiet cores
    python -m benchmarks.peft_comparison --quick    two steps each, to see that it runs; nothing is recorded

For each task (tasks.py) every contender trains the same examples with rank 16 on every linear layer of the same GGUF,
from the same pairs. Each has a process of its own and takes its steps turn about with gguflora, so the ratio of the two
is taken step by step. The limit is what this machine's matrix products reach at the model's shapes, timed before each
contender; tokens are real ones, without padding. Losses stand beside, so that nobody wins by doing less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.contenders import Contender, command_line
from benchmarks.phases import PHASES
from benchmarks.tasks import Entrant, Task, tasks
from benchmarks.turns import ROOT, Answer, child
from gguflora.cli import SPIN
from gguflora.kernels import choose_dtype
from gguflora.run.setting import set_threads

RESULTS = Path(__file__).parent / "results.jsonl"
LOSS_GAP = 0.02
"""In nats: bfloat16 moves the loss of a step by 0.002 here, a forgotten pair or example by more than 0.02."""
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
Ask = Callable[[int], Answer]


@dataclass(frozen=True)
class Row:
    """What one contender did.

    Attributes:
        tokens_per_second: median of the timed steps.
        share: of the machine's limit in the contender's dtype, likewise.
        gguflora_faster: how many times as fast gguflora's first contender was in the same turns, likewise.
        peak_mb: most memory of the process, in 10^6 bytes.
        loss: of the last step.
        phases: seconds a step, likewise; PEFT's loss is in its forward.
    """

    name: str
    dtype: str
    tokens_per_second: float
    share: float
    gguflora_faster: float
    peak_mb: float
    loss: float
    phases: dict[str, float]


def main() -> None:
    """Run every task, print its table, and record it."""
    arguments = _arguments()
    allocator = _find_tcmalloc()
    print(f"tcmalloc: {allocator or 'libtcmalloc_minimal.so.4 is not installed: PEFT runs without it'}")
    dtype = str(choose_dtype()[0]).removeprefix("torch.")
    with TemporaryDirectory() as folder:
        for task in tasks(dtype, allocator is not None, Path(folder)):
            _run(task, allocator, arguments.quick)


def _run(task: Task, allocator: Path | None, quick: bool) -> None:
    print(f"\n{task.name}", flush=True)
    races = []
    with _gemm(task) as ask_limit, _contender(task.first, task, allocator) as ask_first:
        for entrant in task.others:
            races.append(_race(task, entrant, ask_limit(0), ask_first, allocator, quick))
            print(_line(_row(entrant.contender, races[-1:])), flush=True)
    rows = [_first_row(task.first, races), *(_row(race.contender, [race]) for race in races)]
    limits = {name: median(race.limit[name] for race in races) for name in races[0].limit}
    print(_table(rows, limits))
    if not quick:
        _record(task, rows, limits)
    _require_equal_losses(rows)


def _race(task: Task, entrant: Entrant, limit: Answer, ask_first: Ask, allocator: Path | None, quick: bool) -> Race:
    steps, warm_up = (2, 1) if quick else (entrant.steps, task.warm_up)
    with _contender(entrant.contender, task, allocator) as ask:
        turns = [(ask_first(number), ask(number)) for number in range(steps)]
    return Race(entrant.contender, limit, turns[warm_up:])


@dataclass(frozen=True)
class Race:
    """The turns that gguflora's first contender and another took, their answers in pairs.

    Attributes:
        limit: operations a second of the machine's products just before, by dtype and library.
    """

    contender: Contender
    limit: Answer
    turns: list[tuple[Answer, Answer]]


def _first_row(first: Contender, races: list[Race]) -> Row:
    """The first contender raced against itself in every race."""
    return _row(first, [Race(first, race.limit, [(mine, mine) for mine, _ in race.turns]) for race in races])


def _row(contender: Contender, races: list[Race]) -> Row:
    pairs = [(mine, other, _limit(race.limit, contender.dtype)) for race in races for mine, other in race.turns]
    return Row(
        name=contender.name,
        dtype=contender.dtype,
        tokens_per_second=median(other["tokens"] / other["seconds"] for _, other, _ in pairs),
        share=median(other["flops"] / other["seconds"] / limit for _, other, limit in pairs),
        gguflora_faster=median(other["seconds"] / mine["seconds"] for mine, other, _ in pairs),
        peak_mb=max(other["peak"] for _, other, _ in pairs) / 1e6,
        loss=pairs[-1][1]["loss"],
        phases={phase: median(other["phases"][phase] for _, other, _ in pairs) for phase in PHASES},
    )


def _limit(limits: Answer, dtype: str) -> float:
    """Operations a second of the best library in a dtype, forward and backward together."""
    return max(float(rate) for name, rate in limits.items() if name.startswith(dtype) and len(name.split()) == 2)


def _table(rows: list[Row], limits: Answer) -> str:
    lines = ["", "matrix products, in TFLOP/s (median of the races):"]
    lines += [f"  {name:26} {rate / 1e12:6.3f}" for name, rate in limits.items()]
    lines += ["", f"{'':44} {'tok/s':>7} {'of limit':>9} {'gguflora is':>12} {'peak MB':>8} {'loss':>8}"]
    lines += map(_line, rows)
    lines += ["", f"{'seconds a step':44}" + "".join(f" {phase:>9}" for phase in PHASES)]
    lines += (f"{row.name:44}" + "".join(f" {row.phases[phase]:9.3f}" for phase in PHASES) for row in rows)
    return "\n".join(lines)


def _line(row: Row) -> str:
    return (
        f"{row.name:44} {row.tokens_per_second:7.0f} {row.share:9.0%} {row.gguflora_faster:11.2f}x "
        f"{row.peak_mb:8.0f} {row.loss:8.4f}"
    )


def _record(task: Task, rows: list[Row], limits: Answer) -> None:
    """Append a task's run to `RESULTS`, one line."""
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "task": task.name,
        "model": task.model.name,
        "machine": _machine(),
        "torch": str(torch.__version__),
        "limits": limits,
        "rows": [asdict(row) for row in rows],
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)
    print(f"\nrecorded in {RESULTS}")


def _require_equal_losses(rows: list[Row]) -> None:
    losses = [row.loss for row in rows]
    if max(losses) - min(losses) > LOSS_GAP:
        raise SystemExit(f"The losses differ by {max(losses) - min(losses):.4f}: not everybody did the same work.")


def _gemm(task: Task) -> AbstractContextManager[Ask]:
    return child("benchmarks.gemm", [str(task.model)], dict(os.environ))


def _contender(contender: Contender, task: Task, allocator: Path | None) -> AbstractContextManager[Ask]:
    return child(
        "benchmarks.contenders", command_line(contender, task.model, task.kind), _environment(contender, allocator)
    )


def _environment(contender: Contender, allocator: Path | None) -> dict[str, str]:
    """Each as it is used: gguflora's command says how its threads wait, PEFT's users say nothing of it."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if contender.by == "gguflora":
        environment |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPIN}
    return environment | ({"LD_PRELOAD": str(allocator)} if contender.tcmalloc and allocator else {})


def _find_tcmalloc() -> Path | None:
    """libtcmalloc_minimal.so.4 where the loader would look, or None."""
    given = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    machine = platform.machine()
    folders = [
        *filter(None, given),
        f"/usr/lib/{machine}-linux-gnu",
        f"/lib/{machine}-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    paths = (Path(folder) / "libtcmalloc_minimal.so.4" for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _machine() -> dict[str, object]:
    """Processor, the instruction sets that matter, and how many cores the process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "model": f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}",
        "flags": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "threads": set_threads(None)[0],
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peft_comparison", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="two steps each; nothing is recorded")
    return parser.parse_args()


if __name__ == "__main__":
    main()
