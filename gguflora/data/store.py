"""Encoded examples in one file that is read through a memory map: in memory they take 32 bytes each.

    header    mark, sizes, and the SHA-256 of all that follows and of these; written last
    records   one example after the other: tokens (int32) . which of them are trained (a bit each) . source (UTF-8)
    index     32 bytes an example: where its record begins, and its numbers
    notes     bytes for whoever wrote the file

All numbers are little-endian. Labels need no more than a bit, since a label is the token itself or -100.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.errors import FileError

_MARK = b"ggTOKEN2"  # the last character is the format's version
_SIZES = struct.Struct("<8s3Q")  # mark, examples, where the index begins, size of the file
_HEADER = _SIZES.size + hashlib.sha256().digest_size
_ENTRY = np.dtype(
    [
        ("start", "<i8"),
        ("weight", "<f8"),
        ("tokens", "<i4"),
        ("trained", "<i4"),
        ("source", "<i4"),  # bytes
        ("lost_answers", "<u2"),  # of at most 4,096 messages
        ("lost_reasoning", "<u2"),
        ("no_reasoning", "<u2"),
    ]
)
_PACKED = struct.Struct("<qdiiiHHH")  # one entry
_PASSED = 2**16  # examples after which a pass gives back the memory of what it has read
_PIECE = 2**24  # bytes, likewise


@dataclass(frozen=True, eq=False)
class EncodedStore(Sequence[Encoded]):
    """The examples of a file, each made when it is asked for. Make one with `open_store` or `map_store`.

    Attributes:
        data: the file.
        entries: (n,) the index.
        notes: what the writer wanted to be kept.
    """

    data: mmap.mmap
    entries: npt.NDArray[np.void]
    notes: bytes

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start, weight, length, _, source, *counts = self.entries[index].item()
        mask, text = start + 4 * length, start + 4 * length + _mask_bytes(length)
        tokens = np.frombuffer(self.data, "<i4", length, start).astype(np.int32)
        bits = np.frombuffer(self.data, np.uint8, text - mask, mask)
        labels = np.where(np.unpackbits(bits, count=length), tokens, np.int32(NOT_TRAINED))
        name = self.data[text : text + source].decode(errors="surrogatepass")
        return Encoded(tokens, labels, weight, name, *counts)

    def __iter__(self) -> Iterator[Encoded]:
        for number in range(len(self)):
            yield self[number]
            if number % _PASSED == _PASSED - 1:
                _drop_pages(self.data)


def lengths_of(encoded: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """(n,) tokens of each example."""
    if isinstance(encoded, EncodedStore):
        return encoded.entries["tokens"].astype(np.int64)
    return np.fromiter((len(one.tokens) for one in encoded), np.int64, len(encoded))


def trained_tokens(encoded: Sequence[Encoded]) -> int:
    """How many tokens of all examples are trained."""
    if isinstance(encoded, EncodedStore):
        return int(encoded.entries["trained"].sum(dtype=np.int64))
    return sum(int((one.labels != NOT_TRAINED).sum()) for one in encoded)


def write_store(file: BinaryIO, encoded: Iterable[Encoded], notes: Callable[[], bytes] = bytes) -> None:
    """Write examples into an empty file that can be written at any place; only the index of them is held in memory.

    Args:
        file: opened for writing, at its start.
        encoded: any number, taken one at a time.
        notes: asked, after the last example, for bytes to keep.
    """
    file.write(bytes(_HEADER))
    into, index = _Into(file, _HEADER), bytearray()
    for one in encoded:
        source = one.source.encode(errors="surrogatepass")
        index += _entry(one, into.place, len(source))
        into.write(_tokens_and_mask(one) + source)
    into.write(bytes(-into.place % 8))  # numpy reads an aligned index faster
    begins = into.place
    into.write(index)
    into.write(notes())
    sizes = _SIZES.pack(_MARK, len(index) // _PACKED.size, begins, into.place)
    into.digest.update(sizes)
    file.seek(0)
    file.write(sizes + into.digest.digest())


def open_store(path: Path) -> EncodedStore:
    """The examples in a file that `write_store` wrote; all of it is read once, to check it.

    Raises:
        FileError: it can't be read, or is not as it was written.
    """
    try:
        with path.open("rb") as file:
            return map_store(file, str(path))
    except OSError as error:
        raise FileError(f"{path} can't be read ({error.strerror or error}); remove it.") from error


def map_store(file: BinaryIO, name: str) -> EncodedStore:
    """As `open_store`, of an open file, which may be closed after; `name` is for the error.

    Raises:
        FileError: it is not as it was written.
    """
    size = file.seek(0, 2)
    if size < _HEADER:
        raise _damaged(name, "shorter than its header")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mark, count, begins, end = _SIZES.unpack_from(data)
    if mark != _MARK or end != size:
        raise _damaged(name, f"{size} bytes and not what its header says")
    if _digest(data) != data[_SIZES.size : _HEADER]:
        raise _damaged(name, "its SHA-256 is another")
    return EncodedStore(data, np.frombuffer(data, _ENTRY, count, begins), data[begins + count * _PACKED.size :])


@dataclass
class _Into:
    """A file that is written from here on, and the SHA-256 of what was."""

    file: BinaryIO
    place: int
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | bytearray) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.place += len(data)


def _entry(one: Encoded, start: int, source: int) -> bytes:
    trained = int((one.labels != NOT_TRAINED).sum())
    counts = (one.lost_answers, one.lost_reasoning, one.no_reasoning)
    return _PACKED.pack(start, one.weight, len(one.tokens), trained, source, *counts)


def _tokens_and_mask(one: Encoded) -> bytes:
    trained = one.labels != NOT_TRAINED
    if not np.array_equal(one.labels[trained], one.tokens[trained]):
        raise ValueError(f"{one.source}: a label is neither its token nor {NOT_TRAINED}")
    return one.tokens.astype("<i4").tobytes() + np.packbits(trained).tobytes()


def _digest(data: mmap.mmap) -> bytes:
    """The SHA-256 that the header of a file should have."""
    digest = hashlib.sha256()
    for start in range(_HEADER, len(data), _PIECE):
        digest.update(memoryview(data)[start : start + _PIECE])
        _drop_pages(data)
    digest.update(data[: _SIZES.size])
    return digest.digest()


def _mask_bytes(length: int) -> int:
    return -(-length // 8)


def _drop_pages(data: mmap.mmap) -> None:
    """Give back the memory that the bytes read so far take in this process; they can be read again."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        data.madvise(mmap.MADV_DONTNEED)


def _damaged(name: str, why: str) -> FileError:
    return FileError(f"{name} holds no whole set of tokens ({why}); remove it, and it is made again.")
