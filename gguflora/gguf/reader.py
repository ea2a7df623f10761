"""Open a GGUF file that may come from a stranger: bounded, validated before anything is allocated.

The file is mapped, not read; the header is walked once with a cursor that never leaves the file, and arrays (a
vocabulary, say) are only measured then and decoded when asked for. Limits follow llama.cpp's own loader
(ggml/src/gguf.cpp, gguf_init_from_file_impl) where it has them and are stricter where it has none.

    magic "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv times:      key (u64 length + bytes) | value type u32 | value
    n_tensors times: name | n_dims u32 | dims u64... | type u32 | offset u64
    padding to `general.alignment`, then the tensors' bytes
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gguflora.errors import FileError, ModelError
from gguflora.gguf.format import (
    BLOCKS,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_TENSOR_NAME,
    SCALAR_CODES,
    VERSIONS,
    GgmlType,
    ValueType,
)

MAX_KEY_VALUES = 65_536
MAX_TENSORS = 65_536
MAX_KEY = 65_535  # bytes
MAX_STRING = 16 * 2**20  # bytes
MAX_ELEMENTS = 2**24  # of one array: 64 times the largest vocabulary, and what a sparse file can make us walk over
MAX_SHOWN = 80  # characters of a stranger's text in a message
ALIGNMENTS = range(8, 65_537)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in SCALAR_CODES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it.

    Attributes:
        shape: rows first, as numpy and PyTorch have it: (out, in) for a linear layer. The file's own order, `ne`,
            is the reverse.
        offset: bytes from the start of the file.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def ne(self) -> tuple[int, ...]:
        """Dimensions in the file's order, the fastest first."""
        return self.shape[::-1]


@dataclass(frozen=True)
class _Value:
    """A metadata value: a scalar, decoded, or where an array lies, to be decoded by Metadata when asked for.

    Attributes:
        kind: of the scalar, or of the array's elements.
        count: the array's elements; None for a scalar.
        start: byte of the file where the value's type stands.
        data: byte where the scalar, or the first element, stands.
        end: byte after the value.
    """

    kind: ValueType
    count: int | None
    start: int
    data: int
    end: int
    scalar: Any = None


class Metadata(Mapping[str, Any]):
    """The file's key-value pairs. Scalars are at hand; arrays are decoded at each access."""

    def __init__(self, buffer: mmap.mmap | bytes, values: Mapping[str, _Value], path: Path) -> None:
        self._buffer = buffer
        self._values = values
        self._path = path

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return value.scalar if value.count is None else _decode_array(self._buffer, value, key, self._path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def array_length(self, key: str) -> int | None:
        """How many elements the array `key` has, without decoding it; None where there is no such array."""
        value = self._values.get(key)
        return value.count if value else None

    def value_type(self, key: str) -> ValueType | None:
        """Type of the scalar `key`, or of its array's elements; None where there is no such key."""
        value = self._values.get(key)
        return value.kind if value else None

    def encoded(self, key: str) -> bytes:
        """Type and value of `key`, as they lie in the file."""
        value = self._values[key]
        return self._buffer[value.start : value.end]


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file: what its header says, and its bytes through a read-only memory map.

    Attributes:
        stamp: size in bytes, time of the last change in ns, and inode, when it was opened.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    stamp: tuple[int, int, int]
    _buffer: mmap.mmap

    @property
    def architecture(self) -> str:
        """`general.architecture`, the first word of the hyperparameters' keys."""
        return str(self.metadata.get("general.architecture", ""))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name` as they lie in the file: (nbytes,), read-only, not copied."""
        info = self.tensors[name]
        return np.frombuffer(self._buffer, dtype=np.uint8, count=info.nbytes, offset=info.offset)


def open_gguf(path: str | Path) -> GgufFile:
    """Open and validate a GGUF file.

    Raises:
        FileError: it is missing, no regular file, no GGUF, cut short, or breaks a rule of the format.
        ModelError: a tensor has a type that this version does not know.
    """
    path = Path(path)
    buffer, stamp = _map(path)
    try:
        return _parse(path, buffer, stamp)
    except _CutShort as cut:
        raise FileError(
            f"{path} is cut short: it ends at byte {len(buffer)}, inside {cut}; download or copy it again."
        ) from None


class _CutShort(Exception):
    """The file ends inside what the message names."""


def _invalid(path: Path, problem: str) -> FileError:
    return FileError(f"{path} is not a valid GGUF file: {problem}; download or copy it again.")


def _shown(text: str) -> str:
    """A stranger's text, fit for a terminal."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def _map(path: Path) -> tuple[mmap.mmap, tuple[int, int, int]]:
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
            return buffer, (status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise FileError(
            f"{path} can't be opened: {error.strerror or error}; give the path of a GGUF file that you may read."
        ) from error


class _Cursor:
    """Reads the header forward; every step is checked against the end of the file."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0

    def advance(self, nbytes: int, what: str) -> int:
        """Step over `nbytes`; gives where they start."""
        start = self.position
        if nbytes > self.size - start:
            raise _CutShort(what)
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.buffer, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.buffer, self.advance(8, what))[0])

    def string(self, what: str, limit: int = MAX_STRING) -> str:
        length = self.u64(what)
        if length > limit:
            raise _invalid(self.path, f"{what} claims {length} bytes, more than {limit} allowed")
        start = self.advance(length, what)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError:
            raise _invalid(self.path, f"{what} is not UTF-8 text") from None

    def name(self, what: str, limit: int) -> str:
        name = self.string(what, limit)
        if not name or not name.isprintable():
            raise _invalid(self.path, f"{what} is {_shown(name)}, not a printable name")
        return name


def _parse(path: Path, buffer: mmap.mmap, stamp: tuple[int, int, int]) -> GgufFile:
    cursor = _Cursor(path, buffer)
    version = _read_version(cursor)
    n_tensors = _bounded(cursor, cursor.u64("its header"), MAX_TENSORS, "tensors")
    n_kv = _bounded(cursor, cursor.u64("its header"), MAX_KEY_VALUES, "metadata keys")
    values: dict[str, _Value] = {}
    for index in range(n_kv):
        key = cursor.name(f"the name of metadata key {index}", MAX_KEY)
        if key in values:
            raise _invalid(path, f"the metadata key {_shown(key)} stands in it twice")
        values[key] = _read_value(cursor, key)
    alignment = _alignment(path, values)
    entries = [_read_entry(cursor, index) for index in range(n_tensors)]
    tensors = _place(cursor, entries, alignment)
    return GgufFile(path, version, Metadata(buffer, values, path), MappingProxyType(tensors), stamp, buffer)


def _read_version(cursor: _Cursor) -> int:
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC[: len(magic)]:
        raise FileError(f"{cursor.path} is not a GGUF file: {_looks_like(bytes(cursor.buffer[:64]))}.")
    cursor.advance(4, "its header")
    version = cursor.u32("its header")
    if version in VERSIONS:
        return version
    if version and version & 0xFFFF == 0:
        raise FileError(f"{cursor.path} is a big-endian GGUF: only little-endian files can be used, so get one.")
    raise FileError(
        f"{cursor.path} has GGUF version {version}: only versions 2 and 3 can be used, so get a file in one of these."
    )


def _looks_like(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, so fetch the real file with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, so the download went wrong"
    if start.startswith((b"ggml", b"lmgg", b"fmgg", b"tjgg")):
        return "it has llama.cpp's format from before 2023, so get a newer file"
    if start[:2] == b"PK" or start[8:10] == b'{"':
        return "it looks like a PyTorch or safetensors checkpoint, so convert it with llama.cpp first"
    return f"it starts with {start[:4]!r}, so give another file"


def _bounded(cursor: _Cursor, count: int, limit: int, what: str) -> int:
    if count > limit:
        raise _invalid(cursor.path, f"it claims {count} {what}, more than {limit} allowed")
    return count


def _value_type(cursor: _Cursor, what: str) -> ValueType:
    number = cursor.u32(what)
    try:
        return ValueType(number)
    except ValueError:
        raise _invalid(cursor.path, f"{what} has the unknown value type {number}") from None


def _read_value(cursor: _Cursor, key: str) -> _Value:
    what = f"the metadata value {key}"
    start = cursor.position
    kind = _value_type(cursor, what)
    if kind is ValueType.ARRAY:
        return _measure_array(cursor, key, start)
    data = cursor.position
    scalar: Any
    if kind is ValueType.STRING:
        scalar = cursor.string(what)
    else:
        layout = _STRUCTS[kind]
        [scalar] = layout.unpack_from(cursor.buffer, cursor.advance(layout.size, what))
    return _Value(kind, None, start, data, cursor.position, scalar)


def _measure_array(cursor: _Cursor, key: str, start: int) -> _Value:
    what = f"the metadata array {key}"
    kind = _value_type(cursor, what)
    if kind is ValueType.ARRAY:
        raise _invalid(cursor.path, f"{what} is an array of arrays")
    count = cursor.u64(what)
    if count > MAX_ELEMENTS:
        raise _invalid(cursor.path, f"{what} claims {count} elements, more than {MAX_ELEMENTS} allowed")
    data = cursor.position
    if kind is ValueType.STRING:
        _step_over_strings(cursor, count, what)
    else:
        cursor.advance(count * _STRUCTS[kind].size, what)
    return _Value(kind, count, start, data, cursor.position)


def _step_over_strings(cursor: _Cursor, count: int, what: str) -> None:
    # The hot loop of opening a file with a large vocabulary: no calls but the one that unpacks.
    buffer, unpack, end, position = cursor.buffer, _U64.unpack_from, cursor.size, cursor.position
    for _ in range(count):
        if position + 8 > end:
            raise _CutShort(what)
        position += 8 + unpack(buffer, position)[0]
    if position > end:
        raise _CutShort(what)
    cursor.position = position


def _decode_array(buffer: mmap.mmap | bytes, array: _Value, key: str, path: Path) -> list[Any]:
    if array.kind is not ValueType.STRING:
        return list(struct.unpack_from(f"<{array.count}{SCALAR_CODES[array.kind]}", buffer, array.data))
    strings: list[str] = []
    position, unpack = array.data, _U64.unpack_from
    try:
        while position < array.end:
            start = position + 8
            position = start + unpack(buffer, position)[0]
            if position - start > MAX_STRING:
                raise _invalid(path, f"element {len(strings)} of {key} is longer than {MAX_STRING} bytes")
            strings.append(buffer[start:position].decode())
    except UnicodeDecodeError:
        raise _invalid(path, f"element {len(strings)} of {key} is not UTF-8 text") from None
    return strings


def _alignment(path: Path, values: Mapping[str, _Value]) -> int:
    value = values.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.count is not None or value.kind is not ValueType.UINT32:
        raise _invalid(path, "general.alignment is not of type UINT32")
    alignment = int(value.scalar)
    if alignment not in ALIGNMENTS or alignment & (alignment - 1):
        raise _invalid(path, f"general.alignment is {alignment}, not a power of two from 8 to 65536")
    return alignment


@dataclass(frozen=True)
class _Entry:
    name: str
    type: GgmlType
    shape: tuple[int, ...]
    nbytes: int
    offset: int  # from the start of the data


def _read_entry(cursor: _Cursor, index: int) -> _Entry:
    name = cursor.name(f"the name of tensor {index}", MAX_TENSOR_NAME)
    what = f"the description of tensor {name}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise _invalid(cursor.path, f"tensor {name} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    ne = tuple(cursor.u64(what) for _ in range(n_dims))
    number = cursor.u32(what)
    offset = cursor.u64(what)
    try:
        kind = GgmlType(number)
    except ValueError:
        raise ModelError(
            f"{cursor.path}: tensor {name} has type {number}, which is not supported; get the model in another type."
        ) from None
    return _Entry(name, kind, ne[::-1], _nbytes(cursor.path, name, ne, kind), offset)


def _nbytes(path: Path, name: str, ne: tuple[int, ...], kind: GgmlType) -> int:
    elements = 1
    for dim in ne:
        elements *= dim
        if dim < 1 or elements >= 2**63:
            raise _invalid(path, f"tensor {name} has the impossible dimensions {list(ne)}")
    block = BLOCKS[kind]
    if ne[0] % block.elements:
        raise _invalid(
            path, f"rows of tensor {name} have {ne[0]} elements, not a multiple of {kind.name}'s {block.elements}"
        )
    return elements // block.elements * block.nbytes


def _place(cursor: _Cursor, entries: list[_Entry], alignment: int) -> dict[str, TensorInfo]:
    """Offsets must be the running sum of the padded sizes: no overlap, no hole, nothing past the end."""
    start = _padded(cursor.position, alignment)
    expected = 0
    tensors: dict[str, TensorInfo] = {}
    for entry in entries:
        if entry.name in tensors:
            raise _invalid(cursor.path, f"tensor {entry.name} stands in it twice")
        if entry.offset != expected:
            raise _invalid(cursor.path, f"tensor {entry.name} starts at offset {entry.offset}, not {expected}")
        if start + expected + entry.nbytes > cursor.size:
            raise _CutShort(f"tensor {entry.name}")
        tensors[entry.name] = TensorInfo(entry.name, entry.type, entry.shape, start + expected, entry.nbytes)
        expected = _padded(expected + entry.nbytes, alignment)
    return tensors


def _padded(position: int, alignment: int) -> int:
    return position + (-position) % alignment
