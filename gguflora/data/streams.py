"""A source's bytes, wherever they are: standard input, a file, an address; unpacked on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gguflora.data.compression import unpacked
from gguflora.data.remote import is_remote, open_address
from gguflora.data.sources import STANDARD_INPUT, Source
from gguflora.errors import DataError


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """The bytes of a source that is no folder, to be read once from the start.

    Raises:
        DataError: it can't be read, now or later, or is damaged.
        UsageError: a package is missing that could read it.
    """
    try:
        if source.address == STANDARD_INPUT:
            yield sys.stdin.buffer
        elif is_remote(source.address):
            with open_address(source.address) as file:
                yield unpacked(file, source.compression, source.name)
        else:
            with Path(source.address).open("rb") as file:
                yield unpacked(file, source.compression, source.name)
    except OSError as error:
        raise DataError(f"{source.name} can't be read ({error.strerror or error}); check the path.") from error
