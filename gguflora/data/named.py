"""Texts that are all counted, and of which the first are kept: of millions, a few tell what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_NAMED = 1000


@dataclass
class Named:
    """How many there were, and the first MOST_NAMED of them: sources of examples, or sentences about records."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def append(self, text: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < MOST_NAMED:
            self.first.append(text)


def joined(parts: Iterable[Named]) -> Named:
    """All of `parts` in order."""
    some = list(parts)
    first = [text for part in some for text in part.first]
    return Named(sum(part.count for part in some), first[:MOST_NAMED])
