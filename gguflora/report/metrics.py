"""metrics.jsonl: every event of a run, one a line, in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

from gguflora.errors import MachineError
from gguflora.events import Event, as_dict
from gguflora.storage import write_bytes

NAME = "metrics.jsonl"


def append_metrics(folder: Path, event: Event) -> None:
    """Add one event to the folder's metrics file.

    Raises:
        MachineError: the system refused to write.
    """
    path = folder / NAME
    try:
        # A path may hold bytes that are no UTF-8; they become \udcXX, which JSON reads as Python wrote them.
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(as_dict(event), ensure_ascii=False) + "\n")
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror or error}; make room there.") from error


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop what a killed run recorded after the state that it resumes from, and a line that the kill cut.

    Resumed from step 0, a run does everything again: then nothing is kept.

    Raises:
        MachineError: the system refused to read or write.
    """
    path = folder / NAME
    if not path.exists():
        return
    try:
        lines = path.read_bytes().splitlines(keepends=True) if step > 0 else []
    except OSError as error:
        raise MachineError(f"{path} could not be read: {error.strerror or error}.") from error
    write_bytes(path, b"".join(line for line in lines if _is_until(line, step)))


def _is_until(line: bytes, step: int) -> bool:
    """Whether a line is whole and of an event up to `step`."""
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(event, dict) and event.get("step", 0) <= step
