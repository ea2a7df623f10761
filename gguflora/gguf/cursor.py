"""Read a stranger's file forward, never past its end.

Every length that the file claims is compared with what is there before anything is allocated for it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from gguflora.errors import FileError

MAX_STRING = 16 * 2**20  # bytes
MAX_SHOWN = 80  # characters of a stranger's text in a message

U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")


class CutShort(Exception):
    """The file ends inside what the message names."""


def invalid(path: Path, problem: str) -> FileError:
    """The error for a file that breaks the rule named in `problem`."""
    return FileError(f"{path} is not a valid GGUF file: {problem}; download or copy it again.")


def shown(text: str) -> str:
    """A stranger's text, fit for a terminal."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


class Cursor:
    """Reads the header forward; every step is checked against the end of the file.

    Each method takes a name for what it reads, for the message of a file that ends inside it (CutShort).
    """

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0

    def advance(self, nbytes: int, what: str) -> int:
        """Step over `nbytes`; gives where they start."""
        start = self.position
        if nbytes > self.size - start:
            raise CutShort(what)
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        """The next number of 4 bytes."""
        return int(_U32.unpack_from(self.buffer, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        """The next number of 8 bytes."""
        return int(U64.unpack_from(self.buffer, self.advance(8, what))[0])

    def string(self, what: str, limit: int = MAX_STRING) -> str:
        """The next string: its length, then its bytes."""
        length = self.u64(what)
        if length > limit:
            raise invalid(self.path, f"{what} claims {length} bytes, more than {limit} allowed")
        start = self.advance(length, what)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError:
            raise invalid(self.path, f"{what} is not UTF-8 text") from None

    def name(self, what: str, limit: int) -> str:
        """The next string, which must be printable and not empty."""
        name = self.string(what, limit)
        if not name or not name.isprintable():
            raise invalid(self.path, f"{what} is {shown(name)}, not a printable name")
        return name
