"""The output folder of a run: is it free, who writes to it now, and what was decided there.

`run.json` holds everything that the result depends on; a resumed run must agree with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguflora.errors import FileError, FolderInUse, MachineError, UsageError
from gguflora.storage import TEMPORARY_SUFFIX, remove_leftovers, write_bytes
from gguflora.train import STATE_FOLDER

RECORD = "run.json"
LOCK = ".lock"

_DECISIVE = ("model", "data", "lora", "training")  # parts of run.json that a resumed run must agree with
_PARTS = (*_DECISIVE, "environment")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})

# What may differ when a run goes on: it changes what is shown or saved, not what is learned.
FREE_SETTINGS = frozenset({"logging_steps", "save_steps", "eval_steps", "threads"})


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure that a run may write to `folder`, without changing anything.

    Raises:
        FolderInUse: another process writes to it now.
        UsageError: it is a file, can't be written, or holds something already and `resume` is off.
    """
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:  # a name that is too long, or below a folder that may not be entered
        raise UsageError(f"--output-dir {folder} can't be made: {error.strerror}; give another folder.") from error
    if not existing.is_dir():
        raise UsageError(f"--output-dir {folder} can't be made: {existing} is a file; give a folder.")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"--output-dir {folder} can't be written: no permission in {existing}; give another folder.")
    if folder.is_dir():
        _check_unused(folder)
        _check_content(folder, resume)


@contextmanager
def claim_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Hold `folder` for this run, made if absent; the claim ends with the process, however it ends.

    Raises:
        FolderInUse: another process holds it.
        UsageError: it can't be made, or another run has left something in it since `check_folder`.
        MachineError: there is no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        kind = MachineError if error.errno in _NO_ROOM else UsageError
        raise kind(f"--output-dir {folder} can't be written: {error.strerror}; give another folder.") from error
    try:
        _lock(folder, descriptor)
        _check_content(folder, resume)
        for place in (folder, folder / STATE_FOLDER):
            remove_leftovers(place)
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
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged ({error}): start again in another folder.") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in _PARTS):
        raise FileError(f"{path} is damaged (not what a run writes): start again in another folder.")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json, atomically."""
    # A path may hold bytes that are no UTF-8; they become \udcXX, which JSON reads as Python wrote them.
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_bytes(folder / RECORD, text.encode(errors="backslashreplace"))


def check_same_run(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Compare what a resumed run is asked to do with what run.json says it did.

    Returns:
        Warnings: differences in the environment, by which the result may differ in its last bits.

    Raises:
        UsageError: base, data or a setting that changes the result is another one; it is named.
    """
    for part in _DECISIVE:
        before, now = old[part], new[part]
        for name in sorted(set(before) | set(now)):
            if name not in FREE_SETTINGS and name != "path" and before.get(name) != now.get(name):
                raise UsageError(
                    f"{folder} can't be resumed: {part} {name} was {_brief(before.get(name))}, now it is "
                    f"{_brief(now.get(name))}; use the same, or another --output-dir."
                )
    before, now = old["environment"], new["environment"]
    return [
        f"{name} was {before.get(name)} and is {value} now: the result will be equivalent, not equal to the bit"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _check_content(folder: Path, resume: bool) -> None:
    """A run may begin in an empty folder and go on in its own; what a killed writer left behind counts as nothing."""
    content = [entry.name for entry in folder.iterdir()]
    content = [name for name in content if name != LOCK and not name.endswith(TEMPORARY_SUFFIX)]
    if content and not resume:
        raise UsageError(f"--output-dir {folder} {_what_is_in(folder)}: give another folder, or --resume.")
    if content and RECORD not in content:
        raise UsageError(f"--output-dir {folder} has no {RECORD}, so there is no run in it that could be resumed.")


def _what_is_in(folder: Path) -> str:
    if not (folder / RECORD).exists():
        return "is not empty"
    try:
        record = read_record(folder) or {}
    except FileError:
        return "holds a run"
    result = record.get("result") or {}
    state = "a finished" if result and not result.get("stopped_by") else "an unfinished"
    return f"holds {state} run on {record['model'].get('name', 'another model')}"


def _check_unused(folder: Path) -> None:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return  # no run has ever claimed it, or it can't be read: claim_folder will tell
    try:
        _lock(folder, descriptor, fcntl.LOCK_SH)  # shared: two that only look do not see each other
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
        raise FolderInUse(f"{folder} is in use by another run ({holder}): wait for it, or use another.") from None
    except OSError as error:
        raise MachineError(f"{folder} can't be locked: {error.strerror}; give one on another file system.") from error
    if kind == fcntl.LOCK_EX:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12]
