"""Examples become encoded ones; those that can't teach anything are left out, each counted under its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.labels import Encoded, encode_example
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer

WEIGHT_ZERO = "weight 0"
NO_ANSWER = "no message of the assistant"
EMPTY_ANSWER = "empty answer"
TOO_LONG = "longer than max_length"


@dataclass(frozen=True)
class Prepared:
    """What is trained, and what is not.

    Attributes:
        encoded: in the order of the examples.
        skipped: reason -> sources of the examples that were left out for it.
    """

    encoded: tuple[Encoded, ...]
    skipped: Mapping[str, tuple[str, ...]]


def prepare(examples: Sequence[Example], tokenizer: Tokenizer, template: ChatTemplate, max_length: int) -> Prepared:
    """Encode examples, leaving out those of weight 0, without an answer, or longer than max_length tokens.

    An example is never cut: its end is what teaches the model to stop. In one of several answers an empty one counts
    as well, because the model would learn to say nothing there.

    Args:
        examples: those without a source are named by their number.
        tokenizer: the base's.
        template: the base's.
        max_length: most tokens of an example, template included.

    Raises:
        DataError: an example can't be encoded, or none is left.
    """
    encoded: list[Encoded] = []
    skipped: dict[str, list[str]] = {}
    for number, example in enumerate(examples, 1):
        named = example if example.source else replace(example, source=f"example {number}")
        result = _encode_or_reason(named, tokenizer, template, max_length)
        if isinstance(result, Encoded):
            encoded.append(result)
        else:
            skipped.setdefault(result, []).append(named.source)
    if not encoded:
        raise DataError(_nothing_left(skipped, max_length))
    return Prepared(tuple(encoded), {reason: tuple(sources) for reason, sources in skipped.items()})


def filter_by_length(
    examples: Sequence[Example], tokenizer: Tokenizer, template: ChatTemplate, max_length: int
) -> list[Example]:
    """The examples that take at most max_length tokens, template included.

    Raises:
        DataError: an example can't be encoded.
    """
    return [example for example in examples if len(encode_example(example, tokenizer, template).tokens) <= max_length]


def _encode_or_reason(example: Example, tokenizer: Tokenizer, template: ChatTemplate, max_length: int) -> Encoded | str:
    if example.weight == 0:
        return WEIGHT_ZERO
    answers = _answers(example)
    if not answers:
        return NO_ANSWER
    if not all(answer.strip() for answer in answers):
        return EMPTY_ANSWER
    encoded = encode_example(example, tokenizer, template)
    return encoded if len(encoded.tokens) <= max_length else TOO_LONG


def _answers(example: Example) -> list[str]:
    match example.content:
        case Conversation(messages):
            return [message.content for message in messages if message.role == "assistant"]
        case Completion(_, completion):
            return [completion]


def _nothing_left(skipped: Mapping[str, Sequence[str]], max_length: int) -> str:
    if not skipped:
        return "There is no example to train; give at least one."
    counts = ", ".join(f"{len(sources)} {reason}" for reason, sources in skipped.items())
    [first, *_] = [source for sources in skipped.values() for source in sources]
    raised = f" or raise max_length above {max_length}" if TOO_LONG in skipped else ""
    return f"No example is left to train ({counts}; the first is {first}); correct the data{raised}."
