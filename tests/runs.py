"""The command on a tiny model and a tiny dataset: in this process, or as a process of its own that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguflora.cli import main

# The command, with the check in llama.cpp left out: it takes seconds, and these tests are about what comes before it.
UNCHECKED = [
    sys.executable,
    "-c",
    "import gguflora.llamacpp as llamacpp; llamacpp.available = lambda: False\nfrom gguflora.cli import main; main()",
]
COMMAND = [sys.executable, "-m", "gguflora"]


def write_dataset(path: Path, count: int = 10) -> Path:
    """Completions of uneven lengths, no two of them equal."""
    records = [
        {"prompt": f"say {n}", "completion": "it is " + " and ".join(["x"] * (1 + n % 4)) + f" {n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def command(*arguments: object) -> int:
    """Run the command in this process; gives its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def start(*arguments: object, command: list[str] = UNCHECKED) -> subprocess.Popen[str]:
    """Start the command as a process; use it in a `with` block."""
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a process prints with --json, as it comes; a line that a kill cut is left out."""
    assert process.stdout
    for line in process.stdout:
        if line.endswith("\n"):
            yield json.loads(line)


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Read what a process prints until it has done a step."""
    for event in events(process):
        if event["event"] == "step_done" and event["step"] >= step:
            return
    pytest.fail(f"the process ended before step {step}: {process.stderr.read() if process.stderr else ''}")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of a folder's metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
