"""The one door for writing files: a file appears whole, or not at all.

A name that exists always holds complete data: bytes go to a temporary file in the same folder, are forced to the
disk, and the name is moved over in one operation (POSIX rename(2); Pillai et al., OSDI 2014, on why both fsyncs
are needed). Leftovers of a killed writer are named `.NAME.PID.partial` and are removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gguflora.errors import MachineError

TEMPORARY_SUFFIX = ".partial"
_FOR_LARGE_FILES = Path("/var/tmp")  # a disk also where /tmp is memory (file-hierarchy(7) of systemd)


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Make `path` hold what `write` puts into the file it is given, replacing any older file.

    Raises:
        MachineError: the system refused (disk full, not writable, ...); `path` is then as it was before, or, where
            only the folder could not be forced to the disk, already whole and new.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise MachineError(
            f"{path} could not be written: {error.strerror or error}; make room there or give another path."
        ) from error
    except BaseException:
        _discard(temporary)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, atomically.

    Raises:
        MachineError: the system refused; `path` is then as it was before.
    """

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(path, write)


@contextlib.contextmanager
def unnamed_file() -> Iterator[BinaryIO]:
    """A temporary file for much data, without a name: nothing is left of it, however the process ends.

    It is in the folder that TMPDIR names; without it in /var/tmp. A memory map of it outlives the `with` block.

    Raises:
        MachineError: the system refused, then or in the block.
    """
    large = _FOR_LARGE_FILES if os.access(_FOR_LARGE_FILES, os.W_OK | os.X_OK) else None
    folder = os.environ.get("TMPDIR") or large or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as error:
        raise MachineError(
            f"A temporary file in {folder} could not be written: {error.strerror or error}; make room there or set "
            "TMPDIR to another folder."
        ) from error


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files that a killed writer left in `folder`; gives how many there were."""
    leftovers = list(folder.glob(f".*.[0-9]*{TEMPORARY_SUFFIX}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def _discard(temporary: Path) -> None:
    # Where the folder is gone or the name too long, removing fails as writing did: the first error is the one to
    # tell. What does stay behind is taken by remove_leftovers.
    with contextlib.suppress(OSError):
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync a folder; PostgreSQL goes on there too
            raise
    finally:
        os.close(descriptor)
