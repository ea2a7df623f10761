"""Merging neighbours, cheapest pair first: what SentencePiece and BPE over characters share in llama.cpp.

Two parts of a text merge only where the vocabulary says so. So no merge ever crosses two characters at which it lets
none meet, and what happens on one side of them never shows on the other: the order (cost, then place) of one side's
merges is the same alone. Text is cut there, at nearly every space of ordinary vocabularies, and the ids of each piece
are remembered: exact, whatever the vocabulary.

Source: the work queues of llm_tokenizer_spm_session and llm_tokenizer_bpe_session in llama.cpp's src/llama-vocab.cpp;
numbers are its lines as vendored in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

Ids = tuple[int, ...]

_REMEMBERED = 2**16  # pieces: far more than the words that make up most of a text
_LONGEST = 64  # characters of a piece worth remembering; longer ones hardly come twice


@dataclass(frozen=True)
class PieceEncoder:
    """Ids of text, piece by piece. Make one with `piece_encoder`.

    Attributes:
        neighbours: every two characters at which parts may merge.
        piece_ids: ids of a piece, worked out.
        remembered: the same, looked up where the piece came before.
    """

    neighbours: frozenset[str]
    piece_ids: Callable[[str], Ids]
    remembered: Callable[[str], Ids]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; empty text has none."""
        tokens: list[int] = []
        for piece in self._cut(text):
            tokens += self.remembered(piece) if len(piece) <= _LONGEST else self.piece_ids(piece)
        return tokens

    def _cut(self, text: str) -> list[str]:
        """Pieces that no merge leaves; empty text has none."""
        neighbours = self.neighbours
        cuts = [at for at in range(1, len(text)) if text[at - 1 : at + 1] not in neighbours]
        starts, ends = [0, *cuts], [*cuts, len(text)]
        return [text[start:end] for start, end in zip(starts, ends, strict=True)] if text else []


def piece_encoder(neighbours: frozenset[str], piece_ids: Callable[[str], Ids]) -> PieceEncoder:
    """An encoder that remembers the pieces it met."""
    return PieceEncoder(neighbours, piece_ids, functools.lru_cache(_REMEMBERED)(piece_ids))


def merge(text: str, costs: Mapping[str, float], between: str = "") -> list[str]:
    """The parts that `text` falls into: merge the two neighbours of the lowest cost, the leftmost of equals, until
    no two neighbours have one.

    Args:
        text: not empty.
        costs: of each pair that merges, by its left part + `between` + its right part.
        between: stands in no text.
    """
    symbols = list(text)  # "" where the symbol went into the one on its left
    before, after = list(range(-1, len(text) - 1)), [*range(1, len(text)), -1]
    pairs = enumerate(left + between + right for left, right in pairwise(symbols))
    queue = [(costs[pair], at, at + 1, 2) for at, pair in pairs if pair in costs]
    heapify(queue)
    while queue:
        _, left, right, size = heappop(queue)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
            continue  # one of the two has merged with another since (152, 667)
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        for one, other in ((before[left], left), (left, after[left])):
            if one < 0 or other < 0:
                continue  # an end of the text
            pair = symbols[one] + between + symbols[other]
            if pair in costs:
                heappush(queue, (costs[pair], one, other, len(symbols[one]) + len(symbols[other])))
    return [symbol for symbol in symbols if symbol]
