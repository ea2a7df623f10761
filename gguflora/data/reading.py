"""Sources of any format to examples, one at a time: only the record under way is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from gguflora.config import ReadConfig
from gguflora.data.arrow_records import read_datasets_records, read_parquet_records
from gguflora.data.columns import check_columns, renamed
from gguflora.data.csv_records import read_csv_records, typed
from gguflora.data.example import Example
from gguflora.data.json_records import read_json_records
from gguflora.data.lines import Found
from gguflora.data.records import KEYS, OPTIONAL_KEYS, REFUSED_KEYS, TOOL_KEYS, Shape, read_record
from gguflora.data.sources import Source, find_sources
from gguflora.data.streams import open_source
from gguflora.data.text_records import read_text_record
from gguflora.errors import DataError, UsageError


def iterate_examples(
    sources: Iterable[str | Path],
    reading: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
    on_skip: Callable[[str], None] = lambda _: None,
) -> Iterator[Example]:
    """The examples of everything that is named, in that order, in bounded memory.

    Args:
        sources: files, folders, patterns, addresses, or "-" (data/sources.py).
        reading: other names of keys, weights of sources, and what is done with records that can't be used.
        on_skip: called with the sentence about each record that `reading` leaves out.

    Raises:
        DataError: a source can't be read or holds no record, a record can't be used, or none can.
        UsageError: `reading` names what is not there, or a package is missing.
    """
    columns = reading.columns
    check_columns(columns)
    found = [source for given in sources for source in find_sources(given)]
    weights = _weights(found, reading.source_weights)
    met: set[str] = set()
    first_bad, usable = "", False
    for source, factor in zip(found, weights, strict=True):
        for example in examples_of(source, columns, met):
            if isinstance(example, Example):
                usable = True
                yield example if factor == 1 else _weighed(example, factor)
            elif reading.on_bad_record == "skip":
                first_bad = first_bad or str(example)
                on_skip(str(example))
            else:
                raise example
    if not usable:
        raise _nothing(first_bad)
    # A record without a key that it needs is refused; a misspelt column of another would get lost unseen.
    for key in sorted(columns.keys() & OPTIONAL_KEYS - met):
        raise UsageError(f"--column {key}={columns[key]}: no record has a {columns[key]!r}; correct the name.")


def examples_of(
    source: Source, columns: Mapping[str, str], met: set[str], shapes: tuple[Shape, ...] | None = None
) -> Iterator[Example | DataError]:
    """The examples of one source; for a record that stands for none, why. At least one of either.

    Args:
        source: where they are, and in which format.
        columns: our key -> the records' key.
        met: gains the keys whose column a record had.
        shapes: those that are allowed; all without it.

    Raises:
        DataError: the source can't be read, or holds no record.
        UsageError: a package is missing that could read it.
    """
    empty = True
    for place, value in _records(source, {*KEYS, *REFUSED_KEYS, *TOOL_KEYS, *columns.values()}):
        empty = False
        if columns and isinstance(value, dict):
            met |= {key for key, column in columns.items() if column in value}
        yield _example(value, place, source, columns, shapes)
    if empty:
        raise DataError(f"{source.name} holds no record; it needs at least one.")


def _example(
    value: object, place: str, source: Source, columns: Mapping[str, str], shapes: tuple[Shape, ...] | None
) -> Example | DataError:
    if isinstance(value, DataError):
        return value
    try:
        if isinstance(value, dict):
            value = renamed(value, columns)
            if source.format in ("csv", "tsv"):
                value = typed(value, place)
        return read_record(value, place, shapes)
    except DataError as error:
        return error


def _records(source: Source, keys: Collection[str]) -> Iterator[Found]:
    if source.format == "datasets":
        yield from read_datasets_records(Path(source.address), keys)
        return
    with open_source(source) as file:
        match source.format:
            case "json":
                yield from read_json_records(file, source.name)
            case "csv":
                yield from read_csv_records(file, source.name, ",")
            case "tsv":
                yield from read_csv_records(file, source.name, "\t")
            case "text":
                yield from read_text_record(file, source.name)
            case "parquet":
                yield from read_parquet_records(file, source.name, keys)


def _weights(sources: list[Source], weights: Mapping[str, float]) -> list[float]:
    """The factor of each source's weights: by its own name, else by what named it."""
    names = {name for source in sources for name in (source.address, source.given)}
    for name in weights:
        if name not in names:
            raise UsageError(f"--source-weight {name}=...: no source is called that; write it as the data are named.")
    return [weights.get(source.address, weights.get(source.given, 1.0)) for source in sources]


def _weighed(example: Example, factor: float) -> Example:
    weight = example.weight * factor
    if not math.isfinite(weight):
        raise DataError(f"{example.source}: the weight {example.weight} times {factor} is no finite number; lower one.")
    return replace(example, weight=weight)


def _nothing(first_bad: str) -> DataError:
    if first_bad:
        return DataError(f"No record can be used; the first: {first_bad}")
    return DataError("No dataset was given; name at least one file.")
