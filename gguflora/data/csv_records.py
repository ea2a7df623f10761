"""Rows of a CSV or TSV file that may come from a stranger, as records whose keys are the columns' names.

The first row names the columns. Quoting is that of RFC 4180, between tabs as well: a cell that begins with a quote may
hold separators, line ends and doubled quotes. All cells are text; `typed` then makes numbers and JSON of those that are
meant so, by our keys, which columns of other names may have been given in between.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from gguflora.data.json_records import MAX_DEPTH, STRICT, deeper_than
from gguflora.data.lines import MAX_LINE, Found, Place, decode, numbered_lines, require_length
from gguflora.data.records import OPTIONAL_KEYS
from gguflora.errors import DataError

MAX_COLUMNS = 4096

_JSON = frozenset({"messages", "conversations", "tools"})
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}


class _Lines:
    """The lines that csv.reader takes, with where its row began and how many bytes the row has taken."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._lines = numbered_lines(file, name)
        self.start = Place(name, 1)
        self._bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        place, line = next(self._lines)
        require_length(line, place)
        if self._bytes == 0:
            self.start = place
        self._bytes += len(line)
        if self._bytes > MAX_LINE:  # a quote that nothing closes would take in the whole file
            raise DataError(f"{self.start}: the row is longer than {MAX_LINE} bytes; close its quotes, or shorten it.")
        return decode(line, place)

    def next_row(self) -> None:
        """A row is complete: the next line begins another."""
        self._bytes = 0


def read_csv_records(file: BinaryIO, name: str, separator: str) -> Iterator[Found]:
    """The rows behind the first as texts, each with the place of its first line; one that does not fit is a DataError.

    Args:
        file: to be read from where it stands.
        name: of the file, for places.
        separator: between cells: a comma, or a tab.

    Raises:
        DataError: there is no row of names, the file is no UTF-8, its quotes are wrong, or it exceeds a limit.
    """
    lines = _Lines(file, name)
    rows = _rows(lines, separator)
    names = next(rows, None)
    if names is None:
        return
    _check_names(names, lines.start, separator)
    for row in rows:
        yield str(lines.start), _record(names, row, lines.start)


def _rows(lines: _Lines, separator: str) -> Iterator[list[str]]:
    """Rows that are not blank."""
    csv.field_size_limit(MAX_LINE)  # the module has one for the whole process: 128 KiB, too little for a document
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{lines.start}: the row's quotes or line ends are wrong ({error}); "
                'put a cell that holds a quote in quotes, and write the quote twice ("").'
            ) from error
        if row is None:
            return
        if row:
            yield row
        lines.next_row()


def _check_names(names: list[str], place: Place, separator: str) -> None:
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{place}: the file has {len(names)} columns; at most {MAX_COLUMNS} are read.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{place}: the column {twice[0]!r} stands twice in the first row; give each a name of its own.")
    if len(names) == 1:
        for other, words in _OTHER_SEPARATORS.items():
            if other != separator and other in names[0]:
                ours = _OTHER_SEPARATORS[separator]
                raise DataError(
                    f"{place}: the columns seem to be separated by {words}; save the file with {ours} "
                    "(.csv has commas, .tsv has tabs)."
                )


def typed(record: dict[str, str], place: str) -> dict[str, Any]:
    """A row with a number as its weight, decoded messages, and without empty cells that a record may lack.

    Raises:
        DataError: a cell is not what it must be.
    """
    return {key: _value(key, cell, place) for key, cell in record.items() if cell or key not in OPTIONAL_KEYS | _JSON}


def _record(names: list[str], row: list[str], place: Place) -> dict[str, str] | DataError:
    if len(row) == len(names):
        return dict(zip(names, row, strict=True))
    return DataError(
        f"{place}: the row has {len(row)} cells and the first row names {len(names)} columns; "
        "put a cell that holds a separator in quotes."
    )


def _value(name: str, cell: str, place: str) -> Any:
    if name == "weight":
        try:
            return float(cell)
        except ValueError as error:
            raise DataError(f"{place}: the weight is {cell!r}; it must be a number from 0 upwards.") from error
    if name not in _JSON:
        return cell
    try:
        value = STRICT.decode(cell)
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: the cell of {name} is not JSON ({error}); write an array of objects.") from error
    if deeper_than(value, MAX_DEPTH):
        raise DataError(f"{place}: the cell of {name} is nested deeper than {MAX_DEPTH} levels; flatten it.")
    return value
