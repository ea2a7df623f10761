"""Rows of Parquet files, and of folders that the `datasets` library saved, as records. pyarrow reads them.

A few rows are read at a time, and only the columns that can mean something. A cell without a value counts as absent, so
one file may hold records of several shapes. What a file declares about itself is checked before its rows are read:
small files can declare huge ones. pyarrow must be newer than 23, older ones read freed memory in Arrow files
(CVE-2026-25087).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from gguflora.data.compression import GRACE, MAX_EXPANSION
from gguflora.data.json_records import STRICT
from gguflora.data.lines import Found
from gguflora.errors import DataError, UsageError

MAX_ROW_GROUP = 2**30  # bytes of a Parquet file's row group, unpacked: what is read may take that much memory
MAX_BATCH = 2**26  # bytes that the rows unpacked at a time may take if one may be as large as its row group
MAX_COLUMNS = 4096
STATE = "state.json"  # what save_to_disk writes beside the rows
SPLITS = "dataset_dict.json"  # what it writes above the folders of several splits

_ROWS = 64  # of a Parquet file, most that are unpacked at a time
_BLOCK = 2**20  # bytes of a column read at a time
_MAX_STATE = 2**20  # bytes


def read_parquet_records(file: BinaryIO, name: str, keys: Collection[str]) -> Iterator[Found]:
    """The rows of a Parquet file, each with its number from 1.

    Args:
        file: one that can be read anywhere.
        name: of the file, for places.
        keys: columns that can mean something; others are not read.

    Raises:
        DataError: the file is damaged, declares more than a limit above, or has none of the columns.
        UsageError: pyarrow is not installed.
    """
    pyarrow = _pyarrow("parquet")
    try:
        # Not read ahead: that is memory, and threads of pyarrow that still hold the file when Python ends abort it.
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BLOCK)
        _check_size(table.metadata, file, name)
        columns = _columns(table.schema_arrow.names, keys, name)
        batches = _batches(table, columns)
        yield from _numbered((row for batch in batches for row in _rows(batch, columns)), name)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: a text of no UTF-8
        raise _damaged(name, error) from error


def read_datasets_records(folder: Path, keys: Collection[str]) -> Iterator[Found]:
    """The rows of a folder that `datasets` saved (save_to_disk), each with its number from 1.

    Args:
        folder: holds state.json and the Arrow files that it names.
        keys: columns that can mean something; others are not read.

    Raises:
        DataError: a file is missing or damaged, or has none of the columns.
        UsageError: pyarrow is not installed.
    """
    pyarrow = _pyarrow("ipc")
    paths = _arrow_files(folder)
    try:
        yield from _numbered((row for path in paths for row in _rows_of_stream(pyarrow, path, keys)), str(folder))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: a text of no UTF-8
        raise _damaged(str(folder), error) from error


def _batches(table: Any, columns: list[str]) -> Iterator[Any]:
    """Few rows at a time: a text that stands in many rows stands in the file once, but in memory in each of them."""
    for index in range(table.metadata.num_row_groups):
        size = max(1, table.metadata.row_group(index).total_byte_size)
        rows = min(max(1, MAX_BATCH // size), _ROWS)
        yield from table.iter_batches(rows, row_groups=[index], columns=columns, use_threads=False)


def _rows_of_stream(pyarrow: ModuleType, path: Path, keys: Collection[str]) -> Iterator[dict[str, Any]]:
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        columns = _columns(stream.schema.names, keys, str(path))
        for batch in stream:
            batch.validate(full=True)  # offsets of a stranger's file: unchecked ones point anywhere
            yield from _rows(batch, columns)


def _numbered(rows: Iterator[dict[str, Any]], name: str) -> Iterator[Found]:
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", row


def _rows(batch: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    cells = [(name, batch.column(name)) for name in columns]
    for row in range(batch.num_rows):
        values = ((name, column[row].as_py()) for name, column in cells)
        yield {name: value for name, value in values if value is not None}


def _columns(names: list[str], keys: Collection[str], name: str) -> list[str]:
    found = [column for column in names if column in keys]
    if not found:
        shown = ", ".join(repr(column)[:40] for column in names[:10]) or "none"
        raise DataError(f"{name} has the columns {shown}, and none that an example is made of; name yours by --column.")
    twice = next((column for column in found if found.count(column) > 1), None)
    if twice:
        raise DataError(f"{name} has two columns {twice!r}; give each a name of its own.")
    return found


def _check_size(metadata: Any, file: BinaryIO, name: str) -> None:
    """Refuse a file that declares more than it may."""
    if metadata.num_columns > MAX_COLUMNS:
        raise DataError(f"{name} has {metadata.num_columns} columns; at most {MAX_COLUMNS} are read.")
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    if max(groups, default=0) > MAX_ROW_GROUP:
        raise DataError(f"{name} has a row group of {max(groups)} bytes; write it with groups below {MAX_ROW_GROUP}.")
    packed = file.seek(0, 2)
    if sum(groups) > MAX_EXPANSION * packed + GRACE:
        raise DataError(
            f"{name} declares {sum(groups)} bytes in a file of {packed}, more than {MAX_EXPANSION} times as much; "
            "it is refused as a bomb."
        )


def _arrow_files(folder: Path) -> list[Path]:
    """The files that state.json names, in its order."""
    state = folder / STATE
    try:
        with state.open("rb") as file:
            value = STRICT.decode(file.read(_MAX_STATE).decode())
        names = [entry["filename"] for entry in value["_data_files"]]
    except OSError as error:
        raise DataError(f"{state} can't be read ({error.strerror or error}); check the path.") from error
    except (DataError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise DataError(f"{state} is not what `datasets` saves; save the dataset again with save_to_disk.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".arrow"):
            raise DataError(f"{state} names {name!r}, which is no Arrow file in its folder; save the dataset again.")
    return [folder / name for name in names]


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name} can't be read ({' '.join(str(error).split())[:200]}); get it again.")


def _pyarrow(part: str) -> ModuleType:
    """pyarrow, with one of its modules loaded."""
    try:
        import pyarrow

        import_module(f"pyarrow.{part}")
    except ImportError as error:
        raise UsageError("Parquet and Arrow files need pyarrow: pip install 'gguflora[parquet]'.") from error
    module: ModuleType = pyarrow
    return module
