"""Files behind an address such as s3://bucket/data.jsonl or hf://datasets/name/data.parquet, through fsspec.

Nothing is asked of a network unless the user names such an address. Whatever a file system's library raises (each has
errors of its own) becomes one DataError.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from gguflora.errors import DataError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a disk
_BLOCK = 2**17  # bytes


def is_remote(given: str) -> bool:
    """Whether it is an address, not a path."""
    return _ADDRESS.match(given) is not None


def matching_addresses(pattern: str) -> list[str]:
    """The addresses that fit a pattern with *, sorted.

    Raises:
        DataError: the file system refuses.
        UsageError: fsspec is not installed.
    """
    fsspec = _fsspec_for(pattern)
    with _told(pattern):
        system, path = fsspec.core.url_to_fs(pattern)
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))


class _Told(io.RawIOBase):
    """A file whose errors are told with its address."""

    def __init__(self, file: BinaryIO, address: str) -> None:
        self._file = file
        self._address = address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer)
        with _told(self._address):
            data = self._file.read(len(room))
        room[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _told(self._address):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def open_address(address: str) -> Iterator[BinaryIO]:
    """What stands at an address, to be read in blocks as it is needed.

    Raises:
        DataError: the file system refuses, now or while it is read.
        UsageError: fsspec is not installed, or what it needs for this kind of address.
    """
    fsspec = _fsspec_for(address)
    with _told(address):
        file = fsspec.open(address, "rb").open()
    with file:
        yield io.BufferedReader(_Told(file, address), _BLOCK)


@contextmanager
def _told(address: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(_needs(address, error)) from error
    except Exception as error:
        raise DataError(f"{address} can't be read {_why(error)}.") from error


def _why(error: BaseException) -> str:
    while isinstance(error, FileNotFoundError) and error.__cause__:  # so fsspec dresses whatever a server refuses
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return "(No such file); check the address"
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return f"({cause}); check the address and your access to it"


def _needs(address: str, error: BaseException) -> str:
    """Which package is missing: fsspec tells it in words of its own, and the name is in the error behind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            return f"{address} needs {package}, which is not installed: pip install {package}."
        cause = cause.__cause__
    return f"{address} needs a package that can't be used ({' '.join(str(error).split())}); install it again."


def _fsspec_for(address: str) -> ModuleType:
    if "::" in address:  # zip:: and its kind would unpack unmeasured
        raise DataError(f"{address} chains addresses, which is not read; give the file's own address.")
    try:
        import fsspec
    except ImportError as error:
        raise UsageError("Addresses such as s3://... need fsspec: pip install 'gguflora[fsspec]'.") from error
    module: ModuleType = fsspec
    return module
