r"""Numbered lines of a text file that may come from a stranger: bounded, UTF-8 only, each fault with its place.

Lines end at "\n" alone, so U+2028 and its kind stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gguflora.errors import DataError

MAX_LINE = 16 * 2**20  # bytes of one line, and of one record of any text format

BOM = b"\xef\xbb\xbf"
_UTF16 = re.compile(rb"\xff\xfe|\xfe\xff|\0.|.\0", re.DOTALL)  # its two marks, or ASCII in it

Found = tuple[str, object]
"""A record as a file holds it: its place, and its value, or the DataError that says why it has none."""


@dataclass(frozen=True)
class Place:
    """Where a record starts: the name of its file, and the line from 1."""

    name: str
    line: int

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"


def numbered_lines(file: BinaryIO, name: str) -> Iterator[tuple[Place, bytes]]:
    """Lines with their ends, without the mark that some editors put before UTF-8.

    Of a line longer than MAX_LINE comes a piece of MAX_LINE + 1 bytes: whoever reads must refuse it, or read on itself.

    Raises:
        DataError: the file looks like UTF-16.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        yield Place(name, number), without_bom(line, name) if number == 1 else line


def without_bom(beginning: bytes, name: str) -> bytes:
    """The beginning of a text file without the mark of UTF-8.

    Raises:
        DataError: it looks like UTF-16.
    """
    if _UTF16.match(beginning):
        raise DataError(f"{name}:1: the file looks like UTF-16; save it as UTF-8.")
    return beginning.removeprefix(BOM)


def require_length(line: bytes, place: Place) -> None:
    """Refuse a line that is longer than MAX_LINE."""
    if len(line) > MAX_LINE:
        raise DataError(f"{place}: the line is longer than {MAX_LINE} bytes; a record must fit in that.")


def decode(data: bytes, start: Place) -> str:
    """Text from UTF-8.

    Args:
        data: one line or several.
        start: where it starts.

    Raises:
        DataError: it is no UTF-8; names line and byte.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = start.line + before.count(b"\n")
        byte = len(before) - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{start.name}:{line}: byte {byte} of the line (0x{data[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8."
        ) from error


def read_whole(beginning: bytes, file: BinaryIO, limit: int) -> bytes:
    """`beginning` and the rest of the file, or a little more than `limit` bytes of it.

    In blocks, because file.read(limit) takes the memory for the whole limit first.
    """
    blocks = [beginning]
    size = len(beginning)
    while size <= limit and (block := file.read(2**20)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)
