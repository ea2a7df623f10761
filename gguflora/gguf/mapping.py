"""A file's bytes through a read-only memory map: nothing is read before it is used."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gguflora.errors import FileError


@dataclass(frozen=True)
class Part:
    """One file of a model; most models are in one.

    Attributes:
        stamp: size in bytes, time of the last change in ns, and inode, when it was opened.
        buffer: its bytes, through a read-only memory map.
    """

    path: Path
    stamp: tuple[int, int, int]
    buffer: mmap.mmap


def map_file(path: Path) -> Part:
    """Map `path`, if it is a regular file that is not empty.

    Raises:
        FileError: it is not, is missing, or may not be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FileError(f"{path} is a folder: give the GGUF file in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise FileError(f"{path} is not a regular file: give a GGUF file.")
        if status.st_size == 0:
            raise FileError(f"{path} is empty: download or copy it again.")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return Part(path, (status.st_size, status.st_mtime_ns, status.st_ino), buffer)
    except OSError as error:
        raise FileError(
            f"{path} can't be opened: {error.strerror or error}; give the path of a GGUF file that you may read."
        ) from error


def drop_pages(part: Part) -> None:
    """Give back the memory that the bytes read so far take in this process; they can be read again."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        part.buffer.madvise(mmap.MADV_DONTNEED)
