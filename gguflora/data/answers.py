"""A conversation's tokens, and which of its answers are trained: those that stand there as they are generated.

A template may write an answer differently once later messages follow it: without its reasoning, or with another end.
What it writes then is context, as it is when the model is served; to train it would teach what is never generated.
So an earlier answer is trained if its text, up to the token that ends it, is the same with later messages and
without; the last answer is trained in any case, what follows it left out if need be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gguflora.config import TrainOn
from gguflora.data.encoded import NOT_TRAINED
from gguflora.data.example import Conversation, Message
from gguflora.data.literal_text import Hidden, hide_control_tokens, split_pieces
from gguflora.data.rows import rows_of, switches_of
from gguflora.data.turns import Script, Turn, text_behind, write_script
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer, Vocabulary
from gguflora.tokenizer.partition import C_SPACE
from gguflora.tokenizer.special_tokens import TokenType

_NO_END = (
    "the chat template writes no end-of-generation token after an answer, so the model would never learn to stop; "
    "use another --chat-template, or prompt and completion."
)


@dataclass(frozen=True)
class Labelled:
    """Tokens with their labels.

    Attributes:
        lost_answers: how many are context alone, because the template changes them once later messages follow.
        lost_reasoning: how many trained answers have reasoning that the template does not write.
    """

    tokens: list[int]
    labels: list[int]
    lost_answers: int = 0
    lost_reasoning: int = 0


@dataclass(frozen=True)
class _Answer:
    """An answer that is trained: where it starts in the text, and its tokens up to the one that ends it."""

    start: int
    tokens: list[int]


Encode = Callable[[str, bool], list[int]]
"""Ids of a text; and whether it goes on from text before it."""


def label_conversation(
    conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, train_on: TrainOn
) -> Labelled:
    """Tokens and labels of a conversation's answers.

    Args:
        conversation: what its messages say is text, whatever they spell.
        tokenizer: the base's.
        template: the base's.
        train_on: all answers or the last one; for "everything" the labels are those of all, and no answer is needed.

    Raises:
        DataError: there is no answer, the template refuses the messages, or the last answer can't be trained.
    """
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not answers and train_on != "everything":
        raise DataError("no message is the assistant's, so there is nothing to train; add the answer.")
    through_last = conversation.messages[: answers[-1] + 1] if answers else conversation.messages
    messages = through_last if train_on == "last" else conversation.messages
    labelled = _label(messages, conversation, tokenizer, template, train_on)
    if labelled is None:
        labelled = _label(through_last, conversation, tokenizer, template, train_on)
    assert labelled is not None  # with nothing behind it, the last answer is trained or refused
    return labelled


def opening(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts before every text."""
    return [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []


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


def _label(
    messages: Sequence[Message],
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    train_on: TrainOn,
) -> Labelled | None:
    """As label_conversation for these messages; None where the last answer needs what follows it to be left out."""
    hidden = hide_control_tokens(rows_of(messages), switches_of(conversation), tokenizer.controls_in)
    script = write_script(hidden.rows, hidden.switches, template, last_only=train_on == "last")
    _require_faithful(hidden, script.text, messages, conversation, template)

    @functools.cache
    def encode(text: str, continues: bool) -> list[int]:
        return _encode_pieces(split_pieces(text, hidden, tokenizer.controls_in(text)), tokenizer, continues)

    for message in messages:
        for text in message.texts() if message.role == "assistant" else ():
            require_no_ending(text, tokenizer)
    kept = _kept(script, encode, tokenizer.vocabulary, hidden, template)
    total = sum(message.role == "assistant" for message in messages)
    if (not kept or kept[-1][0].number != total) and train_on != "everything":
        if messages[-1].role != "assistant":
            return None
        raise DataError(script.problems.get(total, _NO_END))
    written = [(messages[turn.index], hidden.restore(turn.finished)) for turn, _ in kept]
    _require_calls_written(written)
    tokens, labels = _joined(script, [answer for _, answer in kept], encode, tokenizer.vocabulary)
    unwritten = sum(message.reasoning.strip() not in text for message, text in written)
    return Labelled(tokens, labels, total - len(kept) if train_on == "all" else 0, unwritten)


def _kept(
    script: Script, encode: Encode, vocabulary: Vocabulary, hidden: Hidden, template: ChatTemplate
) -> list[tuple[Turn, _Answer]]:
    """The answers that stand in the script as they are generated."""
    kept = []
    bounds = [*(turn.start for turn in script.turns), len(script.text)]
    for turn, (start, end) in zip(script.turns, pairwise(bounds), strict=True):
        behind = functools.partial(text_behind, hidden.rows[: turn.index + 1], hidden.switches, template)
        generated = _generated(turn.finished, behind, encode, vocabulary)
        piece = encode(script.text[start:end], True) + (_closing(vocabulary) if end == len(script.text) else [])
        last = turn.index + 1 == len(hidden.rows)
        if generated and (last or piece[: len(generated)] == generated):
            kept.append((turn, _Answer(start, generated)))
    return kept


def _generated(finished: str, behind: Callable[[], str], encode: Encode, vocabulary: Vocabulary) -> list[int]:
    """The tokens of an answer up to the first one that ends generation; none where nothing ends it.

    Some templates end an answer only by what opens the next turn (GLM: `<|user|>`); that token is generated, and
    llama.cpp stops at it.
    """
    ids = encode(finished, True) + _closing(vocabulary)
    ends = [index for index, id in enumerate(ids) if id in vocabulary.eog]
    if ends:
        return ids[: ends[0] + 1]
    following = encode(behind(), True)[:1]
    return [*ids, *following] if following and following[0] in vocabulary.eog else []


def _joined(
    script: Script, answers: Sequence[_Answer], encode: Encode, vocabulary: Vocabulary
) -> tuple[list[int], list[int]]:
    """Tokens of the script, and their labels: what stands before the first answer, each answer and what follows it."""
    bounds = [*(answer.start for answer in answers), len(script.text)]
    closing = _closing(vocabulary)
    tokens = opening(vocabulary) + encode(script.text[: bounds[0]], False) + closing
    labels = [NOT_TRAINED] * len(tokens)
    for answer, (start, end) in zip(answers, pairwise(bounds), strict=True):
        ids = encode(script.text[start:end], True) + (closing if end == len(script.text) else [])
        assert ids[: len(answer.tokens)] == answer.tokens[: len(ids)]  # the last one may have its end put behind it
        rest = ids[len(answer.tokens) :]
        tokens += answer.tokens + rest
        labels += answer.tokens + [NOT_TRAINED] * len(rest)
    return tokens, labels


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


def _closing(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts after every text, a prompt included: llama-server generates behind it."""
    return [vocabulary.eos] if vocabulary.add_eos and vocabulary.eos is not None else []


def _require_faithful(
    hidden: Hidden, rendered: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> None:
    """Refuse a template that writes messages with stand-ins differently from the messages as they were."""
    if not hidden.spellings:
        return
    if hidden.restore(rendered) != template.render(rows_of(messages), **switches_of(conversation)):
        spelled = " and ".join(map(repr, hidden.spellings.values()))
        raise DataError(f"a message spells {spelled}, which the chat template acts on; take it out of the message.")


def _require_calls_written(answers: Sequence[tuple[Message, str]]) -> None:
    """Refuse a template that passes over tool calls: an answer of nothing would be trained in their place."""
    for message, text in answers:
        for call in message.tool_calls:
            if call.name not in text:
                raise DataError(
                    f"the chat template does not write the tool call {call.name!r}; give --chat-template with one "
                    "that does, or take the call out."
                )
