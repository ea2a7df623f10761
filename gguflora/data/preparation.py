"""An example becomes what is trained of it, or the reason why nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguflora.config import Overlong, TrainOn
from gguflora.data.encoded import Encoded
from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.labels import encode_example
from gguflora.data.overlong import fit
from gguflora.data.scene import opening
from gguflora.tokenizer import ChatTemplate, Tokenizer

WEIGHT_ZERO = "weight 0"
NO_ANSWER = "no message of the assistant"
EMPTY_ANSWER = "empty answer"
TOO_LONG = "longer than max_length"
CUT_AWAY = "longer than max_length, and nothing trained is left of it"
LOST_ANSWERS = "earlier answers not trained, since it can't be found out how the model is made to write them"
OWN_DOCUMENTS = (
    "earlier answers trained in documents of their own, since the chat template writes them differently once later "
    "messages follow"
)
LONG_DOCUMENTS = "some answers not trained: what stands before them makes a document longer than max_length"
LOST_REASONING = "answers trained without their reasoning, which the chat template does not write"
NO_REASONING = "answers without reasoning where the chat template has a place for it: the model learns to think nothing"
THINKING_SWITCH = "enable_thinking"
WITHOUT_PLACE = f" (--template-option {THINKING_SWITCH}=false trains them without that place)"
ALTERED = {
    "truncate-left": "longer than max_length: the beginning was cut off",
    "truncate-right": "longer than max_length: the end was cut off",
    "split": "longer than max_length: split into windows",
}


@dataclass(frozen=True)
class Preparation:
    """How examples become tokens; another process can be told it.

    Attributes:
        tokenizer: the base's.
        template: the base's.
        max_length: most tokens of an example, template included.
        train_on: which tokens of an example are trained.
        overlong: what becomes of examples of more than max_length tokens.
        overlap: tokens that each window of a split one repeats as context, from 1 to max_length - 1.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    max_length: int
    train_on: TrainOn = "all"
    overlong: Overlong = "drop"
    overlap: int = 1


@dataclass(frozen=True)
class PreparedOne:
    """What became of one example: the pieces that are trained, or why there are none, and what was done to it."""

    pieces: tuple[Encoded, ...]
    skipped: str = ""
    altered: tuple[str, ...] = ()


Outcome = PreparedOne | Exception
"""What became of an example, or why that can't be told."""


def prepare_one(example: Example, how: Preparation) -> PreparedOne:
    """Encode one example; where it teaches nothing there are no pieces, but the reason.

    It teaches nothing without weight or without an answer. In one of several answers an empty one counts as well,
    because the model would learn to say nothing there.

    Raises:
        DataError: it can't be encoded.
    """
    reason = _reason_to_skip(example, how.train_on)
    if reason:
        return PreparedOne((), reason)
    begun = len(opening(how.tokenizer.vocabulary))
    pieces: list[Encoded] = []
    done: set[str] = set()
    for number, document in enumerate(encode_example(example, how.tokenizer, how.template, how.train_on)):
        fitting = fit(document, how.max_length, how.overlong, begun, how.overlap)
        pieces += fitting
        done |= {OWN_DOCUMENTS} if number else set()
        done |= _altered(document, how.template)
        if len(document.tokens) > how.max_length:
            done.add(ALTERED[how.overlong] if fitting else LONG_DOCUMENTS)
    if not pieces:
        return PreparedOne((), TOO_LONG if how.overlong == "drop" else CUT_AWAY)
    return PreparedOne(tuple(pieces), altered=tuple(sorted(done)))


def filter_by_length(
    examples: Sequence[Example], tokenizer: Tokenizer, template: ChatTemplate, max_length: int
) -> list[Example]:
    """The examples that take at most max_length tokens, template included.

    Raises:
        DataError: an example can't be encoded.
    """
    return [
        example
        for example in examples
        if all(len(document.tokens) <= max_length for document in encode_example(example, tokenizer, template))
    ]


def _altered(document: Encoded, template: ChatTemplate) -> set[str]:
    """What is not trained of a document, or not as one might expect."""
    switched = template.reads(THINKING_SWITCH) and template.switches.get(THINKING_SWITCH) is not False
    found = {
        LOST_ANSWERS: document.lost_answers,
        LOST_REASONING: document.lost_reasoning,
        NO_REASONING + (WITHOUT_PLACE if switched else ""): document.no_reasoning,
    }
    return {what for what, count in found.items() if count}


def _reason_to_skip(example: Example, train_on: TrainOn) -> str:
    """Why an example can't teach anything; empty if it can."""
    if example.weight == 0:
        return WEIGHT_ZERO
    empty = _empty_answers(example)
    if any(empty):
        return EMPTY_ANSWER
    return "" if empty or train_on == "everything" else NO_ANSWER


def _empty_answers(example: Example) -> list[bool]:
    """Of each answer, whether it says nothing."""
    match example.content:
        case Conversation(messages):
            return [message.is_empty() for message in messages if message.role == "assistant"]
        case Completion(_, completion):
            return [not completion.strip()]
