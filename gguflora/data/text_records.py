"""A text file as one document: a record with its whole text, byte for byte but for the mark of UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from gguflora.data.lines import Found, Place, decode, read_whole, without_bom
from gguflora.errors import DataError

MAX_DOCUMENT = 2**28  # bytes


def read_text_record(file: BinaryIO, name: str) -> Iterator[Found]:
    """The file's text under the key text; a blank file comes as a DataError.

    Args:
        file: to be read from where it stands.
        name: of the file; it is the document's place.

    Raises:
        DataError: the file is longer than MAX_DOCUMENT, or no UTF-8.
    """
    data = without_bom(read_whole(b"", file, MAX_DOCUMENT), name)
    if len(data) > MAX_DOCUMENT:
        raise DataError(f"{name} is longer than {MAX_DOCUMENT} bytes; split it into several files.")
    text = decode(data, Place(name, 1))
    yield name, {"text": text} if text.strip() else DataError(f"{name} holds no text; leave it out.")
