r"""An example becomes tokens, and labels that say which of them are trained.

Encoded as inference meets them, piece by piece: ids(prompt, as llama-server tokenises it) + ids(answer and what
follows it), nothing inserted at the join. Trained is each answer from the point where generation starts up to the
token that ends it, and nothing after it: not the newline that a template writes behind `<|im_end|>`.

    tokens   <|im_start|> user \n Hi <|im_end|> \n <|im_start|> assistant \n Hello <|im_end|> \n
    labels   -100 ............................................................ Hello <|im_end|> -100

What messages say is text: where a message spells a control token, its characters are encoded (literal_text.py).
A tokenizer that puts a space before every text (SentencePiece) is told that an answer goes on from its prompt: the
model generates what it generates there, and nothing puts a space in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.data.example import Completion, Conversation, Example, Message
from gguflora.data.literal_text import Hidden, hide_control_tokens, split_pieces
from gguflora.data.turns import Turn, split_turns
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer, Vocabulary
from gguflora.tokenizer.partition import C_SPACE
from gguflora.tokenizer.special_tokens import TokenType

NOT_TRAINED = -100
"""The label of a token that is context only; PyTorch's cross_entropy has the same number."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example as the model sees it: T tokens.

    Attributes:
        tokens: (T,)
        labels: (T,) tokens[t] where token t is trained (predicted from the tokens before it), else -100. Not shifted.
            The first is -100: nothing stands before it.
        weight: of the example.
        source: of the example.
    """

    tokens: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    weight: float
    source: str


def encode_example(example: Example, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded:
    """Tokens and labels of an example; at least one token is trained.

    Args:
        example: to be learned; its messages are the user's, control tokens in them are text.
        tokenizer: the base's.
        template: the base's; a completion does without.

    Raises:
        DataError: the example can't be encoded so that training it means what it says; names its source and why.
    """
    try:
        match example.content:
            case Conversation(messages):
                tokens, labels = _conversation(messages, tokenizer, template)
            case Completion(prompt, completion):
                tokens, labels = _completion(prompt, completion, tokenizer)
        labels[:1] = [NOT_TRAINED]  # nothing stands before it that could predict it
        if all(label == NOT_TRAINED for label in labels):
            raise DataError("there is nothing to train in the example; give it an answer.")
    except DataError as error:
        raise DataError(f"{example.source}: {error}" if example.source else str(error)) from error
    return Encoded(np.array(tokens, np.int32), np.array(labels, np.int32), example.weight, example.source)


def _conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation."""
    hidden = hide_control_tokens(messages, tokenizer.controls_in("\n".join(message.content for message in messages)))
    prompt, turns = split_turns(hidden.messages, template)
    _require_faithful(hidden, prompt + "".join(turn.piece for turn in turns), messages, template)

    def encode(text: str, *, continues: bool) -> list[int]:
        return _encode_pieces(split_pieces(text, hidden, tokenizer.controls_in(text)), tokenizer, continues)

    closing = _closing(tokenizer.vocabulary)
    tokens = _opening(tokenizer.vocabulary) + encode(prompt, continues=False) + closing
    labels = [NOT_TRAINED] * len(tokens)
    for number, turn in enumerate(turns, 1):
        _require_no_ending(turn.content, tokenizer)
        finished = encode(turn.finished, continues=True)
        trained = _through_ending(finished + closing, tokenizer.vocabulary)
        ids = finished if turn.piece == turn.finished else encode(turn.piece, continues=True)
        ids = ids + closing if number == len(turns) else ids
        if ids[: len(trained)] != trained:
            raise _changed_by_later_messages(hidden, turn, number)
        tokens += ids
        labels += trained + [NOT_TRAINED] * (len(ids) - len(trained))
    return tokens, labels


def _completion(prompt: str, completion: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens and labels of plain text and how it goes on, with the end of the text."""
    ending = tokenizer.vocabulary.eos
    if ending is None:
        raise DataError("the model has no end-of-text token (eos), so a completion can't end; give a conversation.")
    _require_no_ending(completion, tokenizer)
    tokens = _opening(tokenizer.vocabulary) + tokenizer.encode(prompt, add_special=False, parse_special=False)
    trained = tokenizer.encode(completion, add_special=False, parse_special=False, continues=bool(prompt))
    return [*tokens, *trained, ending], [NOT_TRAINED] * len(tokens) + [*trained, ending]


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


def _opening(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts before every text."""
    return [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []


def _closing(vocabulary: Vocabulary) -> list[int]:
    """What the tokenizer puts after every text, a prompt included: llama-server generates behind it."""
    return [vocabulary.eos] if vocabulary.add_eos and vocabulary.eos is not None else []


def _through_ending(ids: list[int], vocabulary: Vocabulary) -> list[int]:
    """`ids` up to the first token that ends generation, that one included."""
    for index, id in enumerate(ids):
        if id in vocabulary.eog:
            return ids[: index + 1]
    raise DataError(
        "the chat template writes no end-of-generation token after an answer, so the model would never learn to stop; "
        "use a base with another template, or prompt and completion."
    )


def _changed_by_later_messages(hidden: Hidden, turn: Turn, number: int) -> DataError:
    finished, piece = (hidden.restore(text)[:40] for text in (turn.finished, turn.piece))
    return DataError(
        f"the chat template writes answer {number} differently once later messages follow it ({finished!r} becomes "
        f"{piece!r}), so it can't be trained as it is generated; give conversations of one question and one answer."
    )


def _require_no_ending(text: str, tokenizer: Tokenizer) -> None:
    """Refuse an ending that is no control token: llama.cpp finds those in any text, so it can't be kept as text."""
    vocabulary = tokenizer.vocabulary
    for id in vocabulary.eog:
        ending = tokenizer.decode([id])
        if vocabulary.token_types[id] != TokenType.CONTROL and ending in text:
            raise DataError(f"an answer holds {ending!r}, which ends every answer of this model; take it out.")


def _require_faithful(hidden: Hidden, rendered: str, messages: Sequence[Message], template: ChatTemplate) -> None:
    """Refuse a template that writes messages with stand-ins differently from the messages as they were."""
    if not hidden.spellings:
        return
    rows = [{"role": message.role, "content": message.content} for message in messages]
    if hidden.restore(rendered) != template.render(rows):
        spelled = " and ".join(map(repr, hidden.spellings.values()))
        raise DataError(f"a message spells {spelled}, which the chat template acts on; take it out of the message.")
