"""Examples to what is trained: in memory where they are few, else in a file, of the user's cache or without a name.

A file of the cache is named by the SHA-256 of all that its tokens follow from: the examples with weights and sources,
the tokenizer, the template, the options, and the code that makes tokens of them. A file is read whole before it is
used; one that is damaged is made again. Where the cache can't be written, tokens are made for this run alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguflora import data, tokenizer
from gguflora.config import DataConfig
from gguflora.data import (
    Account,
    Catalogue,
    Example,
    Named,
    Preparation,
    Prepared,
    catalogue_of,
    encode_all,
    id_of,
    map_store,
    open_store,
    write_store,
)
from gguflora.errors import DataError, FileError, MachineError
from gguflora.events import Progress, unseen
from gguflora.run.machine import usable_cores
from gguflora.run.opening import Base
from gguflora.storage import TEMPORARY_SUFFIX, unnamed_file, write_atomically

MANY = 50_000  # examples, or
MUCH = 64 * 2**20  # characters: what has fewer of both takes little memory and little time to encode
MOST_BYTES = 20 * 2**30  # of the cache
_MOST_PROCESSES = 16  # what reads examples for them and writes their tokens is one process
_EACH = 2.0  # seconds of work that are worth a process, which takes half of one to start
_PER_CONVERSATION, _PER_CHARACTER = 0.5e-3, 0.6e-6  # seconds, roughly (docs/log.md)
_ABANDONED = 24 * 3600.0  # seconds after which a file that nobody went on writing is a killed writer's
_CLOCK = ("strftime_now", "datetime", "date_string")  # what templates tell the day by
_NOT_IN_TEXT = ("now", "origin", "absent", "notice")  # fields of a template that no text depends on

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the examples, in order.

    Attributes:
        examples: all of them, to be gone through any number of times.
        known: of all of them.
        wanted: (n,) which of them.
    """

    examples: Iterable[Example]
    known: Catalogue
    wanted: npt.NDArray[np.bool_]

    @classmethod
    def whole(cls, examples: Iterable[Example]) -> Part:
        """All of `examples`, which are gone through once."""
        known = catalogue_of(examples)
        return cls(examples, known, np.ones(len(known.conversations), np.bool_))

    def __len__(self) -> int:
        return int(self.wanted.sum())

    def __iter__(self) -> Iterator[Example]:
        """Those that are wanted.

        Raises:
            DataError: they are not the ones that were catalogued.
        """
        ids = self.known.examples.view(np.uint8)
        number = -1
        for number, example in enumerate(self.examples):
            if number >= len(ids) or (self.wanted[number] and ids[number].tobytes() != id_of(example)):
                raise _changed()
            if self.wanted[number]:
                yield example
        if number + 1 != len(ids):
            raise _changed()


@dataclass(frozen=True)
class Encoding:
    """How the examples of a part are gone about; none of it shows in the result.

    Attributes:
        cores: that may be used; None: all that the process may use.
        progress: told how far it is.
    """

    cores: int | None = None
    progress: Progress = unseen


def prepared(base: Base, part: Part, config: DataConfig, encoding: Encoding = Encoding()) -> Prepared:
    """Encode the examples of `part`.

    Raises:
        DataError: an example can't be encoded, none is left, or they changed since they were catalogued.
        MachineError: there is no room for a file.
    """
    if len(part.wanted) < MANY and part.known.characters < MUCH:
        account = Account()
        return account.about(tuple(_encoded(base, part, config, account, encoding)))
    if config.token_cache == "on":
        try:
            return _from_cache(base, part, config, encoding)
        except (OSError, FileError, MachineError) as error:
            _log.warning("the token cache can't be used, so tokens are kept for this run alone: %s", error)
    account = Account()
    with unnamed_file() as file:
        write_store(file, _encoded(base, part, config, account, encoding))
        return account.about(map_store(file, "a temporary file"))


def cache_folder() -> Path:
    """Where tokens are kept.

    Raises:
        FileNotFoundError: there is no home folder, so no such place.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gguflora" / "tokens"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error


def _from_cache(base: Base, part: Part, config: DataConfig, encoding: Encoding) -> Prepared:
    """From the cache's file, made if there is none that is whole.

    Raises:
        OSError, FileError, MachineError: the cache can't be used.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _key(base, part, config)
    if path.exists():
        try:
            return _used(path)
        except FileError as error:
            _log.warning("tokens are made again: %s", error)
    account = Account()
    write_atomically(
        path, lambda file: write_store(file, _encoded(base, part, config, account, encoding), lambda: _notes(account))
    )
    made = _used(path)
    _make_room(folder, path)
    return made


def _encoded(
    base: Base, part: Part, config: DataConfig, account: Account, encoding: Encoding
) -> Iterator[data.Encoded]:
    total = len(part)
    return encode_all(
        part,
        preparation(base, config),
        account,
        processes=processes_for(part, encoding.cores or usable_cores()),
        on_done=lambda done: encoding.progress(done, total),
    )


def preparation(base: Base, config: DataConfig) -> Preparation:
    """How the examples of `config` become tokens of `base`."""
    return Preparation(
        base.tokenizer, base.template, config.max_length, config.train_on, config.overlong, config.overlap
    )


def processes_for(part: Part, cores: int) -> int:
    """How many processes the examples of `part` are worth."""
    known, share = part.known, len(part) / max(1, len(part.wanted))
    seconds = share * (_PER_CONVERSATION * int(known.conversations.sum()) + _PER_CHARACTER * known.characters)
    return max(1, min(cores, _MOST_PROCESSES, int(seconds / _EACH)))


def _notes(account: Account) -> bytes:
    return json.dumps(asdict(account)).encode()


def _noted(notes: bytes) -> Account:
    """The account that `_notes` wrote."""
    found = json.loads(notes)
    skipped, altered = (
        {reason: Named(**named) for reason, named in found[group].items()} for group in ("skipped", "altered")
    )
    return Account(skipped, altered, Named(**found["endless"]))


def _used(path: Path) -> Prepared:
    """What a file holds; it becomes the last to be removed."""
    store = open_store(path)
    with contextlib.suppress(OSError):  # a cache that can only be read is one too
        os.utime(path)
    return _noted(store.notes).about(store)


def _key(base: Base, part: Part, config: DataConfig) -> str:
    """SHA-256, in hex, of all that the tokens follow from."""
    digest = hashlib.sha256(part.known.examples[part.wanted].tobytes())
    settings = {
        "tokenizer": base.identity.tokenizer,
        "template": _template(base),
        "options": [config.max_length, config.overlong, config.overlap, config.train_on],
        "code": _code(),
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _template(base: Base) -> Mapping[str, Any]:
    """All of the template that its texts depend on; the day as well, where it may be in them."""
    template = base.template
    read = template.source + (template.tool_source or "")
    day = template.now.date().isoformat() if any(name in read for name in _CLOCK) else ""
    return {name: value for name, value in asdict(template).items() if name not in _NOT_IN_TEXT} | {"day": day}


@cache
def _code() -> str:
    """What makes the tokens: versions, and a hash of our own code, since a version may stand for a day's changes."""
    digest = hashlib.sha256("".join(map(version, ("gguflora", "tokenizers", "jinja2"))).encode())
    for package in (data, tokenizer):
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_room(folder: Path, newest: Path) -> None:
    """Remove the files that were not used for longest while all take more than MOST_BYTES, and killed writers'."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run makes room too
            files.append((path.stat(), path))
    files.sort(key=lambda file: file[0].st_mtime_ns)
    total = sum(status.st_size for status, _ in files)
    for status, path in files:
        if path.name.endswith(TEMPORARY_SUFFIX):  # another run may be writing it
            remove = status.st_mtime < time.time() - _ABANDONED
        else:
            remove = total > MOST_BYTES and path != newest
        if remove:
            path.unlink(missing_ok=True)
            total -= status.st_size


def _changed() -> DataError:
    return DataError("The data changed while they were read; start again when nothing writes to them.")
