"""Examples of large files: read anew each time that they are gone through, and never held.

What can't be read twice (standard input, a pipe), is read over a network, or is small, is read into a list instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gguflora.config import ReadConfig
from gguflora.data.example import Example
from gguflora.data.reading import iterate_examples
from gguflora.data.sources import STANDARD_INPUT, Source, find_sources

LARGE = 16 * 2**20  # bytes: reading so much several times costs a second or so, holding it a few times as much memory


@dataclass
class _Told:
    """How many bad records, from the first on, were told about."""

    count: int = 0


@dataclass(frozen=True)
class StreamedExamples:
    """What is named, read once more whenever it is iterated; each sentence about a bad record is told once."""

    sources: Sequence[str | Path]
    reading: ReadConfig = ReadConfig()  # noqa: RUF009 (frozen)
    on_skip: Callable[[str], None] = lambda _: None
    _told: _Told = field(default_factory=_Told)

    def __iter__(self) -> Iterator[Example]:
        numbers = itertools.count()  # of the bad records in this reading: each reading meets the same ones

        def tell(sentence: str) -> None:
            if next(numbers) == self._told.count:
                self._told.count += 1
                self.on_skip(sentence)

        return iterate_examples(self.sources, self.reading, tell)


def open_examples(
    sources: str | Path | Iterable[str | Path],
    reading: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
    on_skip: Callable[[str], None] = lambda _: None,
) -> Iterable[Example]:
    """The examples of what is named, as `iterate_examples`, to be gone through any number of times.

    Files of LARGE bytes or more, together, are read anew each time, so that they may be larger than the memory.

    Raises:
        DataError, UsageError: as `iterate_examples`; of large files it is raised only when they are gone through.
    """
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    sizes = [_size(source) for given in named for source in find_sources(given)]
    if None in sizes or sum(size or 0 for size in sizes) < LARGE:
        return list(iterate_examples(named, reading, on_skip))
    return StreamedExamples(named, reading, on_skip)


def _size(source: Source) -> int | None:
    """Bytes of a file, or of a folder that is one source; None for what can't be read twice, or only from afar."""
    path = Path(source.address)
    if source.address == STANDARD_INPUT:
        return None
    try:
        if source.format == "datasets":
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size if path.is_file() else None
    except OSError:  # reading it will tell
        return None
