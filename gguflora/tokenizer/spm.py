"""SentencePiece as llama.cpp has it: text without special tokens -> ids, by merging neighbours, best score first.

Source: llm_tokenizer_spm_session, byte_to_token and token_to_piece in llama.cpp's src/llama-vocab.cpp (numbers are its
lines as vendored in llama-cpp-python 0.3.36). A space is written U+2581; nothing else is changed: no normalisation, no
white space removed. A character that is in no token becomes its bytes' tokens.

Two neighbours merge only where both together are a token. So no merge ever crosses two characters that stand side by
side in no token, and what happens on one side of them never shows on the other: the order (score, then place) of one
side's merges is the same alone. Text is cut there, at nearly every space of ordinary vocabularies, and the ids of each
piece are remembered: exact, whatever the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from operator import add

import numpy as np

from gguflora.errors import DataError
from gguflora.tokenizer.vocabulary import Vocabulary

SPACE = "\u2581"

_REMEMBERED = 2**16  # pieces: far more than the words that make up most of a text
_LONGEST = 64  # characters of a piece worth remembering; longer ones hardly come twice


@dataclass(frozen=True)
class SpmEngine:
    """Encodes and decodes ordinary text.

    Attributes:
        neighbours: every two characters that stand side by side in some token.
        piece_ids: ids of a piece in which spaces are U+2581, worked out.
        remembered: the same, looked up where the piece came before.
    """

    neighbours: frozenset[str]
    piece_ids: Callable[[str], tuple[int, ...]]
    remembered: Callable[[str], tuple[int, ...]]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which no special token is looked for.

        Raises:
            DataError: the vocabulary has no token for a character nor for its bytes.
        """
        tokens: list[int] = []
        for piece in self._cut(text.replace(" ", SPACE)):
            tokens += self.remembered(piece) if len(piece) <= _LONGEST else self.piece_ids(piece)
        return tokens

    def token_bytes(self, text: str) -> bytes:
        """The bytes that the ordinary token `text` stands for."""
        return text.replace(SPACE, " ").encode()

    def _cut(self, text: str) -> list[str]:
        """Pieces that no merge leaves; empty text has none."""
        neighbours = self.neighbours
        cuts = [at for at in range(1, len(text)) if text[at - 1 : at + 1] not in neighbours]
        starts, ends = [0, *cuts], [*cuts, len(text)]
        return [text[start:end] for start, end in zip(starts, ends, strict=True)] if text else []


def build_spm(vocabulary: Vocabulary) -> SpmEngine:
    """Set up the engine; takes about 0.2 s for 262k tokens."""
    ids = vocabulary.ids
    costs = dict(zip(vocabulary.tokens, (-np.array(vocabulary.scores)).tolist(), strict=True))

    def piece_ids(piece: str) -> tuple[int, ...]:
        return tuple(token for symbol in merge(piece, costs) for token in _symbol_ids(symbol, ids))

    return SpmEngine(neighbours(vocabulary.tokens), piece_ids, functools.lru_cache(_REMEMBERED)(piece_ids))


def neighbours(tokens: Sequence[str]) -> frozenset[str]:
    """Every two characters that stand side by side in some token; in numpy, since there are millions.

    Args:
        tokens: none is empty.
    """
    characters = np.frombuffer("".join(tokens).encode("utf-32-le"), "<u4")
    pairs = characters[:-1].astype(np.uint64) << 32 | characters[1:]
    borders = np.cumsum([len(token) for token in tokens])[:-1] - 1  # where one token ends and the next begins
    found = np.unique(np.delete(pairs, borders))
    text = np.stack([found >> 32, found & 0xFFFFFFFF], axis=1).astype("<u4").tobytes().decode("utf-32-le")
    return frozenset(text[at : at + 2] for at in range(0, len(text), 2))


def merge(text: str, costs: Mapping[str, float]) -> list[str]:
    """The parts that `text` falls into: merge the two neighbours of the lowest cost, the leftmost of equals, until
    no two neighbours are a token.

    Args:
        text: not empty.
        costs: of each token: its score, negated.
    """
    symbols = list(text)  # "" where the symbol went into the one on its left
    before, after = list(range(-1, len(text) - 1)), [*range(1, len(text)), -1]
    queue = [(costs[pair], at, at + 1, 2) for at, pair in enumerate(map(add, symbols, symbols[1:])) if pair in costs]
    heapify(queue)
    while queue:
        _, left, right, size = heappop(queue)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
            continue  # one of the two has merged with another since (152)
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        for one, other in ((before[left], left), (left, after[left])):
            joined = symbols[one] + symbols[other] if one >= 0 and other >= 0 else ""
            if joined in costs:
                heappush(queue, (costs[joined], one, other, len(joined)))
    return [symbol for symbol in symbols if symbol]


def _symbol_ids(symbol: str, ids: Mapping[str, int]) -> list[int]:
    """The token of a part that `merge` left; where it has none, and is therefore one character, its bytes' tokens."""
    token = ids.get(symbol)
    if token is not None:
        return [token]
    found = [ids.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
    tokens = [token for token in found if token is not None]
    if len(tokens) < len(found):
        raise DataError(
            f"The text can't be tokenized: the model has no token for the character {symbol!r} "
            f"(U+{ord(symbol):04X}) nor for its bytes; leave it out."
        )
    return tokens
