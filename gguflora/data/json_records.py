r"""JSON values out of a file that may come from a stranger: bounded, and every error with file, line and column.

A file whose first character is `[` is one array of records, any other has a record a line (JSONL); the suffix
decides nothing. Lines end at "\n" alone, so U+2028 and its kind stay text. Stricter than Python's json module,
because each of these is a mistake that would pass unseen: a key twice in one object, and NaN or Infinity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguflora.errors import DataError

MAX_LINE = 16 * 2**20  # bytes of one line of JSONL
MAX_ARRAY = 2**30  # bytes of a file that is one array: it is read whole
MAX_DEPTH = 64  # levels of arrays and objects in one record

_BOM = b"\xef\xbb\xbf"
_UTF16 = re.compile(rb"\xff\xfe|\xfe\xff|\0.|.\0", re.DOTALL)  # its two marks, or ASCII in it
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Place:
    """Where a record starts: file and line, from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def read_json_records(path: Path) -> Iterator[tuple[Place, Any]]:
    """The JSON values of a file in order, each with its place; at least one.

    Raises:
        DataError: the file can't be read, is empty, no UTF-8 or no JSON, or exceeds a limit above.
    """
    empty = True
    try:
        with path.open("rb") as file:
            for item in _records(file, path):
                empty = False
                yield item
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}); check the path.") from error
    if empty:
        raise DataError(f"{path} holds no record; it needs at least one.")


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[Place, Any]]:
    first = True
    for place, line in _filled_lines(file, path):
        if first and line.lstrip().startswith(b"["):
            yield from _array(place, _whole(line, file))
            return
        first = False
        if len(line) > MAX_LINE:
            raise DataError(f"{place}: the line is longer than {MAX_LINE} bytes; a record must fit in that.")
        text = _decode(line.rstrip(), place)  # so that a cut record is named by its own line
        record, end = _value(text, _skip_space(text, 0), place, place)
        if end != len(text):
            raise _bad_json(json.JSONDecodeError("Extra data", text, end), place)
        yield place, record


def _filled_lines(file: BinaryIO, path: Path) -> Iterator[tuple[Place, bytes]]:
    """Lines that are not blank, without the mark that some editors put before UTF-8.

    Of a line longer than MAX_LINE comes a piece of MAX_LINE + 1 bytes: _records then refuses it, or reads on itself.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = Place(path, number)
        if number == 1:
            if _UTF16.match(line):
                raise DataError(f"{place}: the file looks like UTF-16; save it as UTF-8.")
            line = line.removeprefix(_BOM)
        if line.strip() or len(line) > MAX_LINE:
            yield place, line


def _whole(beginning: bytes, file: BinaryIO) -> bytes:
    """`beginning` and the rest of the file, or a little more than MAX_ARRAY bytes of it.

    In blocks, because file.read(limit) takes the memory for the whole limit first.
    """
    blocks = [beginning]
    size = len(beginning)
    while size <= MAX_ARRAY and (block := file.read(2**20)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def _array(place: Place, data: bytes) -> Iterator[tuple[Place, Any]]:
    """The elements of an array that starts in `data`, after spaces, and must end with it."""
    if len(data) > MAX_ARRAY:
        raise DataError(f"{place}: the array is longer than {MAX_ARRAY} bytes; save it as JSONL, a record a line.")
    text = _decode(data, place)
    at = _skip_space(text, text.index("[") + 1)
    line, counted = place.line, 0
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        here = Place(place.path, line)
        record, at = _value(text, at, place, here)
        yield here, record
        more = text[at : at + 1] == ","
        if more:
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _bad_json(json.JSONDecodeError("Expecting ',' or ']'", text, at), place)
    end = _skip_space(text, at + 1)
    if end != len(text):
        raise _bad_json(json.JSONDecodeError("Extra data", text, end), place)


def _value(text: str, at: int, start: Place, here: Place) -> tuple[Any, int]:
    """The value at `at`, and where the next thing after it begins.

    Args:
        text: the line, or the whole array.
        at: index in `text`, not of a space.
        start: where `text` starts, from which json counts its lines.
        here: where the value starts, for complaints about the whole of it.
    """
    try:
        value, end = STRICT.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _bad_json(error, start) from error
    except RecursionError as error:
        raise _too_deep(here) from error
    except (DataError, ValueError) as error:  # from the hooks below; a number of too many digits
        raise DataError(f"{here}: {error}") from error
    if _deeper_than(value, MAX_DEPTH):
        raise _too_deep(here)
    return value, _skip_space(text, end)


def _bad_json(error: json.JSONDecodeError, start: Place) -> DataError:
    line = start.line + error.lineno - 1
    return DataError(
        f"{start.path}:{line}:{error.colno}: this is not JSON ({error.msg}); "
        "a file holds one JSON object on each line, or one array of objects."
    )


def _too_deep(place: Place) -> DataError:
    return DataError(f"{place}: arrays and objects are nested deeper than {MAX_DEPTH} levels; flatten the record.")


def _deeper_than(value: object, levels: int) -> bool:
    match value:
        case dict():
            inner = iter(value.values())
        case list():
            inner = iter(value)
        case _:
            return False
    return levels == 0 or any(_deeper_than(child, levels - 1) for child in inner)


def _decode(data: bytes, start: Place) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = start.line + before.count(b"\n")
        byte = len(before) - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{start.path}:{line}: byte {byte} of the line (0x{data[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8."
        ) from error


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {twice!r} stands twice in one object; keep one of them.")
    return record


def _no_constant(name: str) -> Any:
    raise DataError(f"{name} is no JSON value; write a number or null.")


STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""Decodes JSON, but raises DataError for a key twice in one object, and for NaN and Infinity."""
