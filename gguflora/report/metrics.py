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
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_dict(event), ensure_ascii=False) + "\n")
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror or error}.") from error


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop what a killed run recorded after the state that it resumes from, and a line that the kill cut.

    Raises:
        MachineError: the system refused to write.
    """
    path = folder / NAME
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            break
        if event.get("step", 0) <= step and line.endswith("\n"):
            kept.append(line)
    write_bytes(path, "".join(kept).encode())
