"""Other names for the keys of records: --column prompt=question reads each record's `question` as its `prompt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguflora.data.records import KEYS
from gguflora.errors import UsageError


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a key that no example is made of.

    Args:
        columns: our key -> the records' key.

    Raises:
        UsageError: a key is none of KEYS.
    """
    for key, column in columns.items():
        if key not in KEYS:
            raise UsageError(f"--column {key}={column}: no example has a {key!r}; give one of {', '.join(KEYS)}.")


def renamed(record: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A record with our keys for the columns that it has; they take the place of keys that it has already."""
    found = {key: column for key, column in columns.items() if column in record}
    if not found:
        return record
    rest = {key: value for key, value in record.items() if key not in found.values()}
    return rest | {key: record[column] for key, column in found.items()}
