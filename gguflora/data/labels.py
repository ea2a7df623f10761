r"""An example becomes tokens, and labels that say which of them are trained.

Encoded as inference meets them, piece by piece: ids(prompt, as llama-server tokenises it) + ids(answer and what
follows it), nothing inserted at the join; answers.py says which answers stand in one document. Trained is each answer
from the point where generation starts up to the token that ends it, and nothing after it: not the newline that a
template writes behind `<|im_end|>`.

    tokens   <|im_start|> user \n Hi <|im_end|> \n <|im_start|> assistant \n Hello <|im_end|> \n
    labels   -100 ............................................................ Hello <|im_end|> -100

What messages say is text: where a message spells a control token, its characters are encoded (literal_text.py).
A tokenizer that puts a space before every text (SentencePiece) is told that an answer goes on from its prompt: the
model generates what it generates there, and nothing puts a space in between.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gguflora.config import TrainOn
from gguflora.data.answers import Labelled, label_conversation
from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.scene import opening, require_no_ending
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer


def encode_example(
    example: Example, tokenizer: Tokenizer, template: ChatTemplate, train_on: TrainOn = "all"
) -> Iterator[Encoded]:
    """Tokens and labels of an example: one document, or more where the template writes answers differently once later
    messages follow; in each at least one token is trained.

    Args:
        example: to be learned; its messages are the user's, control tokens in them are text.
        tokenizer: the base's.
        template: the base's; a completion does without.
        train_on: all answers of a conversation, its last one, or everything, the prompt of a completion included.

    Raises:
        DataError: the example can't be encoded so that training it means what it says; names its source and why.
    """
    try:
        match example.content:
            case Conversation() as conversation:
                documents = label_conversation(conversation, tokenizer, template, train_on)
            case Completion(prompt, completion):
                documents = iter([_completion(prompt, completion, tokenizer)])
        for document in documents:
            yield _encoded(document, example, len(opening(tokenizer.vocabulary)), train_on)
    except DataError as error:
        raise DataError(f"{example.source}: {error}" if example.source else str(error)) from error


def _encoded(labelled: Labelled, example: Example, begun: int, train_on: TrainOn) -> Encoded:
    """A document as arrays.

    Args:
        labelled: the document.
        example: that it is of.
        begun: tokens at its start that are never trained.
        train_on: whether everything else is.
    """
    tokens = np.array(labelled.tokens, np.int32)
    labels = np.array(labelled.labels, np.int32)
    if train_on == "everything":
        labels[begun:] = tokens[begun:]
    labels[:1] = NOT_TRAINED  # nothing stands before it that could predict it
    if (labels == NOT_TRAINED).all():
        raise DataError("there is nothing to train in the example; give it an answer.")
    return Encoded(
        tokens,
        labels,
        example.weight,
        f"{example.source}, answer {labelled.answer}" if labelled.answer else example.source,
        labelled.lost_answers,
        labelled.lost_reasoning,
        labelled.no_reasoning,
    )


def _completion(prompt: str, completion: str, tokenizer: Tokenizer) -> Labelled:
    """Tokens and labels of plain text and how it goes on, with the end of the text."""
    ending = tokenizer.vocabulary.eos
    if ending is None:
        raise DataError("the model has no end-of-text token (eos), so a completion can't end; give a conversation.")
    require_no_ending(completion, tokenizer)
    tokens = opening(tokenizer.vocabulary) + tokenizer.encode(prompt, add_special=False, parse_special=False)
    trained = tokenizer.encode(completion, add_special=False, parse_special=False, continues=bool(prompt))
    return Labelled([*tokens, *trained, ending], [NOT_TRAINED] * len(tokens) + [*trained, ending])
