"""Cut text at special tokens, as llama.cpp does before any other step of tokenizing.

Source: llama_vocab::impl::tokenizer_st_partition in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gguflora.tokenizer.special_tokens import TokenType
from gguflora.tokenizer.vocabulary import Vocabulary

C_SPACE = " \t\n\v\f\r"
"""What C's isspace knows."""

_START = 4  # characters: tells `<unused5>` from `</h1>`


@dataclass(frozen=True)
class SpecialToken:
    """A token that is looked for in the text itself.

    Attributes:
        always: found even where special tokens are not asked for (a user-defined token).
        lstrip: swallows white space on its left; rstrip: on its right.
    """

    id: int
    text: str
    always: bool
    lstrip: bool
    rstrip: bool


def special_tokens(vocabulary: Vocabulary) -> tuple[SpecialToken, ...]:
    """The special tokens of a vocabulary in the order in which they cut: longest text in UTF-8 first."""
    kinds = frozenset((TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN))
    found = [
        SpecialToken(
            id=token,
            text=vocabulary.tokens[token],
            always=kind == TokenType.USER_DEFINED,
            lstrip=token in vocabulary.lstrip,
            rstrip=token in vocabulary.rstrip,
        )
        for token, kind in enumerate(vocabulary.token_types)
        if kind in kinds
    ]
    return tuple(sorted(found, key=lambda special: -len(special.text.encode())))


Starts = Mapping[str, Sequence[tuple[int, SpecialToken]]]
"""Special tokens, each with its place in their order, by the characters that they start with."""


def by_start(specials: Sequence[SpecialToken]) -> Starts:
    """Group special tokens, in the order in which they cut, by how they start: Gemma has 6,414 that start 80 ways."""
    starts = defaultdict(list)
    for place, special in enumerate(specials):
        starts[special.text[:_START]].append((place, special))
    return starts


def possible_in(text: str, starts: Starts) -> list[SpecialToken]:
    """Those special tokens whose start is in `text`, in the order in which they cut: no others can be in it."""
    found = [special for start, group in starts.items() if start in text for special in group]
    return [special for _, special in sorted(found, key=lambda numbered: numbered[0])]


def partition(text: str, specials: Sequence[SpecialToken], *, parse_special: bool) -> list[str | int]:
    """Cut `text` into ids of special tokens and the text between them, which is never empty.

    Args:
        text: any text; empty gives no piece.
        specials: from `special_tokens`, those that `text` can't hold left out or not. Each cuts what the ones before
            it left, from left to right.
        parse_special: whether control tokens are found too; user-defined tokens always are.
    """
    pieces: list[str | int] = [text] if text else []
    for special in specials:
        if (parse_special or special.always) and special.text in text:
            pieces = [part for piece in pieces for part in _cut(piece, special)]
    return pieces


def _cut(piece: str | int, special: SpecialToken) -> Iterator[str | int]:
    if isinstance(piece, int):
        yield piece
        return
    between = piece.split(special.text)
    for place, part in enumerate(between):
        after, before = place > 0, place < len(between) - 1  # whether the token stands there
        kept = part.lstrip(C_SPACE) if special.rstrip and after else part
        kept = kept.rstrip(C_SPACE) if special.lstrip and before else kept
        if kept:
            yield kept
        if before:
            yield special.id
