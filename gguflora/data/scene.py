"""A conversation before its template: its messages, with what spells a control token hidden, and what makes tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gguflora.data.continuation import Row, split_reasoning
from gguflora.data.example import Conversation
from gguflora.data.literal_text import Hidden, hide_control_tokens, split_pieces
from gguflora.data.rows import rows_of, switches_of
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer, Vocabulary
from gguflora.tokenizer.partition import C_SPACE
from gguflora.tokenizer.special_tokens import TokenType


@dataclass(frozen=True)
class Scene:
    """A conversation and what makes tokens of it.

    Attributes:
        rows, switches: the messages and the tools as the user gave them; `hidden` has them as templates get them.
        encode: ids of a text that the template wrote; and whether it goes on from text before it.
        piece: ids of a text that goes on from text before it, kept for the next time.
        decode: ids -> text.
    """

    rows: list[Row]
    switches: dict[str, Any]
    hidden: Hidden
    template: ChatTemplate
    vocabulary: Vocabulary
    encode: Callable[[str, bool], list[int]]
    piece: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def set_scene(conversation: Conversation, length: int | None, tokenizer: Tokenizer, template: ChatTemplate) -> Scene:
    """The first `length` messages of a conversation; all of them without it.

    Raises:
        DataError: an answer holds an ending that can't be kept as text, or the template refuses the messages.
    """
    messages, switches = conversation.messages[:length], switches_of(conversation)
    for message in messages:
        for text in message.texts() if message.role == "assistant" else ():
            require_no_ending(text, tokenizer)
    rows = split_reasoning(rows_of(messages), switches, template)
    hidden = hide_control_tokens(rows, switches, tokenizer.controls_in)

    def encode(text: str, continues: bool) -> list[int]:
        return _encode_pieces(split_pieces(text, hidden, tokenizer.controls_in(text)), tokenizer, continues)

    piece = functools.cache(lambda text: encode(text, True))
    return Scene(rows, switches, hidden, template, tokenizer.vocabulary, encode, piece, tokenizer.decode)


def rendered(scene: Scene) -> str:
    """All messages as the template writes them.

    Raises:
        DataError: the template refuses them, or acts on what they spell.
    """
    text = scene.template.render(scene.hidden.rows, **scene.hidden.switches)
    if scene.hidden.spellings:
        given = scene.template.render(scene.rows, **scene.switches)
        require_faithful(scene.hidden, scene.hidden.restore(text) == given)
    return text


def require_faithful(hidden: Hidden, same: bool) -> None:
    """Refuse a template that writes messages with stand-ins differently from the messages as they were.

    Raises:
        DataError: they are not the `same`.
    """
    if not same:
        spelled = " and ".join(map(repr, hidden.spellings.values()))
        raise DataError(f"a message spells {spelled}, which the chat template acts on; take it out of the message.")


def opening(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts before every text."""
    return [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []


def closing(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts after every text, a prompt included: llama-server generates behind it."""
    return [vocabulary.eos] if vocabulary.add_eos and vocabulary.eos is not None else []


def require_no_ending(text: str, tokenizer: Tokenizer) -> None:
    """Refuse an ending that is no control token: llama.cpp finds those in any text, so it can't be kept as text.

    Raises:
        DataError: the text holds one.
    """
    vocabulary = tokenizer.vocabulary
    for id in vocabulary.eog:
        ending = tokenizer.decode([id])
        if vocabulary.token_types[id] != TokenType.CONTROL and ending in text:
            raise DataError(f"an answer holds {ending!r}, which ends every answer of this model; take it out.")


def _encode_pieces(pieces: Iterable[tuple[str, bool]], tokenizer: Tokenizer, continues: bool) -> list[int]:
    """Ids of a text that was cut into pieces at control tokens, the same as if it had not been cut.

    Args:
        pieces: each with whether control tokens are parsed in it; all but the first begin at or behind a control token.
        tokenizer: the base's.
        continues: the first piece goes on from text before it.
    """
    ids: list[int] = []
    for piece, parse in pieces:
        swallowed = bool(ids) and ids[-1] in tokenizer.vocabulary.rstrip  # Phi-3's tokens take the white space behind
        text = piece.lstrip(C_SPACE) if swallowed else piece
        ids += tokenizer.encode(text, add_special=False, parse_special=parse, continues=continues)
        continues = False
    return ids
