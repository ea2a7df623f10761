"""The output folder of a run: is it free, who writes to it now, and what was decided there.

`run.json` holds everything that the result depends on; a resumed run must agree with it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguflora.errors import FileError, FolderInUse, MachineError, UsageError
from gguflora.storage import remove_leftovers, write_bytes

RECORD = "run.json"
LOCK = ".lock"

# What may differ when a run goes on: it changes what is shown or saved, not what is learned.
FREE_SETTINGS = frozenset({"logging_steps", "save_steps", "eval_steps", "threads"})


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure that a run may write to `folder`, without changing anything.

    Raises:
        UsageError: it is a file, can't be written, or holds something already and `resume` is off.
    """
    if folder.is_dir():
        content = [entry for entry in folder.iterdir() if entry.name != LOCK]
        if content and not resume:
            raise UsageError(f"--output-dir {folder} {_what_is_in(folder)}: give another folder, or --resume.")
        if content and resume and not (folder / RECORD).exists():
            raise UsageError(f"--output-dir {folder} has no {RECORD}, so there is no run in it that could be resumed.")
    elif folder.exists():
        raise UsageError(f"--output-dir {folder} is a file: give a folder.")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--output-dir {folder} can't be written: no permission in {existing}.")


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this run, made if absent; the claim ends with the process, however it ends.

    Raises:
        FolderInUse: another process holds it.
        MachineError: the system refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(f"{folder} could not be made ready: {error.strerror or error}.") from error
    try:
        _lock(folder, descriptor)
        remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where no run has started.

    Raises:
        FileError: it is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}): start again in another folder.") from error
    if not isinstance(record, dict):
        raise FileError(f"{path} is damaged (no JSON object): start again in another folder.")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json, atomically."""
    write_bytes(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())


def check_same_run(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Compare what a resumed run is asked to do with what run.json says it did.

    Returns:
        Warnings: differences in the environment, by which the result may differ in its last bits.

    Raises:
        UsageError: base, data or a setting that changes the result is another one; it is named.
    """
    for part in ("model", "data", "lora", "training"):
        before, now = old.get(part, {}), new[part]
        for name in sorted(set(before) | set(now)):
            if name not in FREE_SETTINGS and name != "path" and before.get(name) != now.get(name):
                raise UsageError(
                    f"{folder} can't be resumed: {part} {name} was {_brief(before.get(name))}, now it is "
                    f"{_brief(now.get(name))}; use the same, or another --output-dir."
                )
    before, now = old.get("environment", {}), new["environment"]
    return [
        f"{name} was {before.get(name)} and is {value} now: the result will be equivalent, not equal to the bit"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _what_is_in(folder: Path) -> str:
    if not (folder / RECORD).exists():
        return "is not empty"
    record = read_record(folder) or {}
    model = record.get("model", {}).get("name", "another model")
    state = "finished" if record.get("result") else "unfinished"
    return f"holds a {state} run on {model}"


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
        raise FolderInUse(f"{folder} is in use by another run ({holder}): wait for it, or use another.") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12]
