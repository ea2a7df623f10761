"""A GGUF file's key-value pairs: walked over once, arrays decoded only when asked for.

Each stands in the file as `value type u32 | value`; an array's value is `element type u32 | count u64 | elements`, a
string's `length u64 | bytes`. Limits follow llama.cpp's own loader (ggml/src/gguf.cpp, gguf_init_from_file_impl)
where it has them and are stricter where it has none.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguflora.gguf.cursor import MAX_STRING, U64, Cursor, CutShort, invalid, shown
from gguflora.gguf.format import SCALAR_CODES, ValueType

MAX_KEY = 65_535  # bytes
MAX_ELEMENTS = 2**24  # of one array: 64 times the largest vocabulary, and what a sparse file can make us walk over

_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in SCALAR_CODES.items()}


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

    def integer(self, key: str, kind: ValueType) -> int | None:
        """The scalar `key` of this type of integer; None where it is absent, of another type, or an array."""
        value = self._values.get(key)
        return int(value.scalar) if value and value.count is None and value.kind is kind else None

    def encoded(self, key: str) -> bytes:
        """Type and value of `key`, as they lie in the file."""
        value = self._values[key]
        return self._buffer[value.start : value.end]


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Step over `count` key-value pairs.

    Raises:
        FileError: a pair breaks a rule of the format.
        CutShort: the file ends before their end.
    """
    values: dict[str, _Value] = {}
    for index in range(count):
        key = cursor.name(f"the name of metadata key {index}", MAX_KEY)
        if key in values:
            raise invalid(cursor.path, f"the metadata key {shown(key)} stands in it twice")
        values[key] = _read_value(cursor, key)
    return Metadata(cursor.buffer, values, cursor.path)


def _value_type(cursor: Cursor, what: str) -> ValueType:
    number = cursor.u32(what)
    try:
        return ValueType(number)
    except ValueError:
        raise invalid(cursor.path, f"{what} has the unknown value type {number}") from None


def _read_value(cursor: Cursor, key: str) -> _Value:
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


def _measure_array(cursor: Cursor, key: str, start: int) -> _Value:
    what = f"the metadata array {key}"
    kind = _value_type(cursor, what)
    if kind is ValueType.ARRAY:
        raise invalid(cursor.path, f"{what} is an array of arrays")
    count = cursor.u64(what)
    if count > MAX_ELEMENTS:
        raise invalid(cursor.path, f"{what} claims {count} elements, more than {MAX_ELEMENTS} allowed")
    data = cursor.position
    if kind is ValueType.STRING:
        _step_over_strings(cursor, count, what)
    else:
        cursor.advance(count * _STRUCTS[kind].size, what)
    return _Value(kind, count, start, data, cursor.position)


def _step_over_strings(cursor: Cursor, count: int, what: str) -> None:
    # The hot loop of opening a file with a large vocabulary: no calls but the one that unpacks.
    buffer, unpack, end, position = cursor.buffer, U64.unpack_from, cursor.size, cursor.position
    for _ in range(count):
        if position + 8 > end:
            raise CutShort(what)
        position += 8 + unpack(buffer, position)[0]
    if position > end:
        raise CutShort(what)
    cursor.position = position


def _decode_array(buffer: mmap.mmap | bytes, array: _Value, key: str, path: Path) -> list[Any]:
    if array.kind is not ValueType.STRING:
        return list(struct.unpack_from(f"<{array.count}{SCALAR_CODES[array.kind]}", buffer, array.data))
    strings: list[str] = []
    data = buffer[array.data : array.end]  # a slice of bytes takes half the time of one of the map
    position, end, unpack = 0, len(data), U64.unpack_from
    try:
        while position < end:
            start = position + 8
            position = start + unpack(data, position)[0]
            if position - start > MAX_STRING:
                raise invalid(path, f"element {len(strings)} of {key} is longer than {MAX_STRING} bytes")
            strings.append(data[start:position].decode())
    except UnicodeDecodeError:
        raise invalid(path, f"element {len(strings)} of {key} is not UTF-8 text") from None
    return strings
