"""What .gz and .zst files hold, unpacked a little at a time, and refused where it outgrows the file: a bomb.

gzip makes text 3 to 10 times smaller, at most 1,032 times; zstd has no bound. Memory is that of a block and a window.
zstd is in Python from 3.14 on; before, the same module comes as backports.zstd.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from gguflora.errors import DataError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSIONS = (".gz", ".zst")

MAX_EXPANSION = 200  # bytes that may come out of each byte of the file
GRACE = 2**20  # bytes that may come out whatever the file's size: short files of one phrase are no bombs
MAX_UNPACKED = 2**40  # bytes that may come out of one file
_MAX_WINDOW = 27  # log2 of the bytes that zstd may look back: what its command allows without being asked
_BLOCK = 2**17  # bytes that come out at a time
_PACKED_BLOCK = 2**13  # bytes that go in at a time: what is read ahead counts as if it were unpacked


class _Counted(io.RawIOBase):
    """A file, and how much of it was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer)
        data = self._file.read(min(len(room), _PACKED_BLOCK))
        room[: len(data)] = data
        self.bytes += len(data)
        return len(data)


class _Unpacked(io.RawIOBase):
    """What comes out of a compressed file, measured against what went in."""

    def __init__(self, packed: _Counted, unpacked: BinaryIO, faults: tuple[type[Exception], ...], name: str) -> None:
        self._packed = packed
        self._unpacked = unpacked
        self._faults = faults
        self._name = name
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer)
        try:
            data = self._unpacked.read(len(room))
        except self._faults as error:
            raise DataError(f"{self._name} is damaged or cut ({error}); get it again.") from error
        self._bytes += len(data)
        if self._bytes > min(MAX_EXPANSION * self._packed.bytes + GRACE, MAX_UNPACKED):
            raise DataError(
                f"{self._name} unpacks to more than {MAX_EXPANSION} times its size, or more than {MAX_UNPACKED} bytes; "
                "it is refused as a bomb: unpack it yourself if you trust it."
            )
        room[: len(data)] = data
        return len(data)


def unpacked(file: BinaryIO, compression: str, name: str) -> BinaryIO:
    """A stream of what a compressed file holds; reading it raises DataError for a damaged file and a bomb.

    Args:
        file: to be read from where it stands.
        compression: ".gz" or ".zst"; "" gives the file itself.
        name: of the file, for messages.

    Raises:
        UsageError: zstd is not installed.
    """
    if not compression:
        return file
    packed = _Counted(file)
    if compression == ".gz":
        raw = _Unpacked(packed, gzip.GzipFile(fileobj=packed), (gzip.BadGzipFile, EOFError, zlib.error), name)  # type: ignore[arg-type]
    else:
        zstd = _zstd()
        options = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW}
        raw = _Unpacked(packed, zstd.ZstdFile(packed, options=options), (zstd.ZstdError, EOFError), name)
    return io.BufferedReader(raw, _BLOCK)


def _zstd() -> ModuleType:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise UsageError("Files that end in .zst need zstd: pip install 'gguflora[zstd]'.") from error
    return zstd
