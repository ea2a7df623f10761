"""JSON values out of a file that may come from a stranger: bounded, and every error with file, line and column.

A file whose first character is `[` is one array of records, any other has a record a line (JSONL); the suffix
decides nothing. Lines are read one at a time, an array is read whole. Stricter than Python's json module, because each
of these is a mistake that would pass unseen: a key twice in one object, and NaN or Infinity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from gguflora.data.lines import Found, Place, decode, numbered_lines, read_whole, require_length
from gguflora.errors import DataError

MAX_ARRAY = 2**30  # bytes of a file that is one array
MAX_DEPTH = 64  # levels of arrays and objects in one record

_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_records(file: BinaryIO, name: str) -> Iterator[Found]:
    """The JSON values of a file in order, each with its place; a line that is none comes as the DataError that it is.

    Args:
        file: to be read from where it stands.
        name: of the file, for places.

    Raises:
        DataError: the file is no UTF-8, its array is no JSON, or it exceeds a limit above or in lines.py.
    """
    first = True
    for place, line in numbered_lines(file, name):
        filled = line.lstrip()
        if first and filled.startswith(b"["):
            yield from _array(place, read_whole(line, file, MAX_ARRAY))
            return
        require_length(line, place)
        if filled:
            first = False
            yield str(place), _value_of_line(line, place)


def _value_of_line(line: bytes, place: Place) -> object:
    try:
        text = decode(line.rstrip(), place)  # so that a cut record is named by its own line
        record, end = _value(text, _skip_space(text, 0), place, place)
        if end != len(text):
            raise _bad_json(json.JSONDecodeError("Extra data", text, end), place)
    except DataError as error:
        return error
    return record


def _array(place: Place, data: bytes) -> Iterator[Found]:
    """The elements of an array that starts in `data`, after spaces, and must end with it."""
    if len(data) > MAX_ARRAY:
        raise DataError(f"{place}: the array is longer than {MAX_ARRAY} bytes; save it as JSONL, a record a line.")
    text = decode(data, place)
    at = _skip_space(text, text.index("[") + 1)
    line, counted = place.line, 0
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        here = Place(place.name, line)
        record, at = _value(text, at, place, here)
        yield str(here), record
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
    if deeper_than(value, MAX_DEPTH):
        raise _too_deep(here)
    return value, _skip_space(text, end)


def _bad_json(error: json.JSONDecodeError, start: Place) -> DataError:
    line = start.line + error.lineno - 1
    return DataError(
        f"{start.name}:{line}:{error.colno}: this is not JSON ({error.msg}); "
        "a file holds one JSON object on each line, or one array of objects."
    )


def _too_deep(place: Place) -> DataError:
    return DataError(f"{place}: arrays and objects are nested deeper than {MAX_DEPTH} levels; flatten the record.")


def deeper_than(value: object, levels: int) -> bool:
    """Whether arrays and objects are nested in `value` in more than so many levels."""
    match value:
        case dict():
            inner = iter(value.values())
        case list():
            inner = iter(value)
        case _:
            return False
    return levels == 0 or any(deeper_than(child, levels - 1) for child in inner)


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
