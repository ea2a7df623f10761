"""Dataset files to examples and back. What a file may be is in json_records.py, what a record may be in records.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from gguflora.data.example import Example
from gguflora.data.json_records import MAX_LINE, read_json_records
from gguflora.data.records import INSTRUCTION, read_record, write_record
from gguflora.errors import DataError
from gguflora.storage import write_atomically


def load_jsonl(path: str | Path) -> list[Example]:
    """The examples of a dataset file, in order; each record may have any of the known shapes.

    Raises:
        DataError: the file can't be read, holds no record, or one of them can't be used; names file and line.
    """
    return [read_record(record, str(place)) for place, record in read_json_records(Path(path))]


def load_alpaca(path: str | Path) -> list[Example]:
    """The examples of a file of instruction, input and output; other shapes are refused.

    Raises:
        DataError: the file can't be read, holds no record, or one of them can't be used; names file and line.
    """
    return [read_record(record, str(place), (INSTRUCTION,)) for place, record in read_json_records(Path(path))]


def load_examples(paths: Iterable[str | Path]) -> list[Example]:
    """The examples of several dataset files, in the order given.

    Raises:
        DataError: there is no path, or a file or record can't be used.
    """
    examples = [example for path in paths for example in load_jsonl(path)]
    if not examples:
        raise DataError("No dataset was given; name at least one .json or .jsonl file.")
    return examples


def save_jsonl(examples: Iterable[Example], path: str | Path) -> None:
    """Write examples, one a line, so that load_jsonl gives equal ones. The file appears whole or not at all.

    Raises:
        DataError: there is no example, or one takes more than a line may hold.
        MachineError: the system refused to write.
    """
    lines = list(_lines(examples))
    if not lines:
        raise DataError(f"There is no example to write to {path}; give at least one.")
    too_long = [number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE]
    if too_long:
        raise DataError(f"Example {too_long[0]} takes more than {MAX_LINE} bytes of {path}; shorten it.")
    write_atomically(Path(path), lambda file: file.writelines(lines))


def dataset_hash(examples: Iterable[Example]) -> str:
    """SHA-256, in hex, over contents and weights in order: the same data has the same hash in any file or shape."""
    digest = hashlib.sha256()
    for line in _lines(examples):
        digest.update(line)
    return digest.hexdigest()


def _lines(examples: Iterable[Example]) -> Iterator[bytes]:
    for example in examples:
        yield json.dumps(write_record(example), ensure_ascii=False).encode() + b"\n"
