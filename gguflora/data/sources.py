"""From what the user names to the files that are read, and how each is read: the name alone decides.

| named                                | is                                                                   |
|--------------------------------------|----------------------------------------------------------------------|
| -                                    | standard input, as JSONL                                             |
| s3://..., hf://..., memory://...     | that address; with * all that fit                                    |
| a folder that `datasets` saved       | its rows                                                             |
| another folder                       | its files that have a suffix of FORMATS, sorted; no folders in it,   |
|                                      | and not its README and LICENSE, which tell of the data               |
| a pattern with * ? [ that is no file | the files that fit, sorted; ** takes in folders                      |
| anything else                        | that file                                                            |

.gz or .zst behind the suffix says that the file is compressed. A name of another suffix, or none, is read as JSON.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from gguflora.data.arrow_records import SPLITS, STATE
from gguflora.data.compression import COMPRESSIONS
from gguflora.data.remote import is_remote, matching_addresses
from gguflora.errors import DataError

Format = Literal["json", "csv", "tsv", "text", "parquet", "datasets"]

STANDARD_INPUT = "-"
FORMATS: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}
_NOT_READ = {
    "unpack it": (".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz"),
    "save it as CSV": (".xlsx", ".xls", ".ods"),
    "save it as JSONL": (".pkl", ".pickle", ".npy", ".pt", ".arrow", ".feather", ".avro", ".orc", ".yaml", ".yml"),
    "it is a model": (".gguf", ".safetensors"),
}
_ABOUT = ("readme", "license")  # texts that tell of a folder's data


@dataclass(frozen=True)
class Source:
    """One file to read, or what stands for one.

    Attributes:
        given: what the user named; several sources may come from one.
        address: path, address, or STANDARD_INPUT.
        compression: ".gz", ".zst", or "".
    """

    given: str
    address: str
    format: Format
    compression: str

    @property
    def name(self) -> str:
        """For messages."""
        return "standard input" if self.address == STANDARD_INPUT else self.address


def find_sources(given: str | Path) -> list[Source]:
    """The files that `given` names; at least one.

    Raises:
        DataError: a folder or pattern that names none, or a kind of file that is not read.
        UsageError: a package is missing that could tell.
    """
    named = str(given)
    if named == STANDARD_INPUT:
        return [Source(named, named, "json", "")]
    if is_remote(named):
        found = matching_addresses(named) if "*" in named else [named]
        return [source_of(address, named) for address in _some(found, named)]
    path = Path(named)
    if is_folder(path):
        return _in_folder(path, named)
    if glob.has_magic(named) and not os.path.lexists(named):
        matches = glob.glob(named, recursive=True)  # noqa: PTH207 (a Path's has no absolute patterns)
        found = sorted(match for match in matches if not is_folder(Path(match)))
        return [source_of(match, named) for match in _some(found, named)]
    return [source_of(named, named)]


def source_of(address: str, given: str) -> Source:
    """A file as its name says that it is read.

    Raises:
        DataError: by its name it is of a kind that is not read.
    """
    compression, suffix = compression_of(address)
    for advice, suffixes in _NOT_READ.items():
        if suffix in suffixes:
            raise DataError(f"{address} is no dataset file ({suffix}); {advice}.")
    format = FORMATS.get(suffix, "json")
    if compression and format == "parquet":
        raise DataError(f"{address} is compressed twice; unpack it to {suffix}.")
    return Source(given, address, format, compression)


def compression_of(address: str) -> tuple[str, str]:
    """The compression that a name says (".gz", ".zst" or ""), and the suffix before it, in small letters."""
    path = urlsplit(address).path if address.startswith(("http://", "https://")) else address
    name = PurePosixPath(path)
    compression = name.suffix.lower() if name.suffix.lower() in COMPRESSIONS else ""
    return compression, PurePosixPath(name.stem if compression else name).suffix.lower()


def text_files(folder: Path) -> list[Source]:
    """The text files in a folder, sorted, whatever they are called; at least one.

    Raises:
        DataError: it can't be read, or has none.
    """
    sources = [source for source in _files(folder, str(folder)) if source.format == "text"]
    if not sources:
        raise DataError(f"{folder} is a folder without a text file; put files into it that end in .txt or .md.")
    return sources


def _some(found: list[str], named: str) -> list[str]:
    if not found:
        raise DataError(f"No file fits {named}; check the pattern.")
    return found


def _in_folder(folder: Path, named: str) -> list[Source]:
    if (folder / STATE).is_file():
        return [Source(named, named, "datasets", "")]
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise DataError(f"{named} holds the splits {', '.join(splits) or 'none'}; name the folder of one of them.")
    sources = [source for source in _files(folder, named) if not _tells_of_records(source)]
    if not sources:
        raise DataError(f"{named} is a folder without a dataset file; put files into it that end in {_endings()}.")
    return sources


def _files(folder: Path, named: str) -> Iterator[Source]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{named} can't be read ({error.strerror or error}); check the path.") from error
    for path in paths:
        if compression_of(path.name)[1] in FORMATS and not path.name.startswith(".") and not is_folder(path):
            yield source_of(str(path), named)


def _tells_of_records(source: Source) -> bool:
    return source.format == "text" and Path(source.address).name.lower().partition(".")[0] in _ABOUT


def _endings() -> str:
    return ", ".join(FORMATS)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a name that no system takes names none."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long: opening it will tell
        return False
