"""Datasets to lists of examples and back: a function for each format, and one for all (load_examples).

What can be named is in sources.py, what a file of each format may be in *_records.py, what a record in records.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gguflora.config import ReadConfig
from gguflora.data.example import Example
from gguflora.data.lines import MAX_LINE
from gguflora.data.reading import examples_of, iterate_examples
from gguflora.data.records import CONVERSATIONS, INSTRUCTION, Shape, write_record
from gguflora.data.sources import Format, Source, compression_of, is_folder, text_files
from gguflora.errors import DataError
from gguflora.storage import write_atomically


def load_examples(
    paths: str | Path | Iterable[str | Path],
    reading: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
    on_skip: Callable[[str], None] = lambda _: None,
) -> list[Example]:
    """The examples of files, folders, patterns and addresses of any known format, in the order given.

    Args:
        paths: what to read; the name of each decides how (data/sources.py).
        reading: other names of keys, weights of sources, and what is done with records that can't be used.
        on_skip: called with the sentence about each record that `reading` leaves out.

    Raises:
        DataError: there is no path, or a file or record can't be used.
        UsageError: `reading` names what is not there, or a package is missing.
    """
    return list(iterate_examples([paths] if isinstance(paths, str | Path) else paths, reading, on_skip))


def load_jsonl(path: str | Path) -> list[Example]:
    """The examples of a JSON or JSONL file, in order; each record may have any of the known shapes.

    Raises:
        DataError: the file can't be read, holds no record, or one of them can't be used; names file and line.
    """
    return _load(path, "json")


def load_alpaca(path: str | Path) -> list[Example]:
    """The examples of a JSON or JSONL file of instruction, input and output; other shapes are refused.

    Raises:
        DataError: the file can't be read, holds no record, or one of them can't be used; names file and line.
    """
    return _load(path, "json", (INSTRUCTION,))


def load_conversations(path: str | Path) -> list[Example]:
    """The examples of a JSON or JSONL file of conversations (from, value), as ShareGPT has them; others are refused.

    Raises:
        DataError: the file can't be read, holds no record, or one of them can't be used; names file and line.
    """
    return _load(path, "json", (CONVERSATIONS,))


def load_csv(path: str | Path) -> list[Example]:
    """The examples of a CSV file, or of a TSV file if the name says so; the first row names the columns.

    Raises:
        DataError: the file can't be read, holds no row, or one of them can't be used; names file and line.
    """
    return _load(path, "tsv" if compression_of(str(path))[1] == ".tsv" else "csv")


def load_parquet(path: str | Path) -> list[Example]:
    """The examples of a Parquet file, or of a folder that `datasets` saved (save_to_disk).

    Raises:
        DataError: it can't be read, holds no row, or one of them can't be used; names file and row.
        UsageError: pyarrow is not installed.
    """
    return _load(path, "datasets" if is_folder(Path(path)) else "parquet")


def load_text(path: str | Path) -> list[Example]:
    """A text file as one document to learn; of a folder each .txt and .md file, sorted by name.

    A document is learned as it is, with its end, in one example; where it is too long, overlong.py says.

    Raises:
        DataError: a file can't be read, holds no text, or there is none.
    """
    if is_folder(Path(path)):
        return [example for source in text_files(Path(path)) for example in _examples(source)]
    return _load(path, "text")


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


def _load(path: str | Path, format: Format, shapes: tuple[Shape, ...] | None = None) -> list[Example]:
    name = str(path)
    return _examples(Source(name, name, format, compression_of(name)[0]), shapes)


def _examples(source: Source, shapes: tuple[Shape, ...] | None = None) -> list[Example]:
    examples = []
    for example in examples_of(source, {}, set(), shapes):
        if isinstance(example, DataError):
            raise example
        examples.append(example)
    return examples


def _lines(examples: Iterable[Example]) -> Iterator[bytes]:
    for example in examples:
        yield json.dumps(write_record(example), ensure_ascii=False).encode() + b"\n"
