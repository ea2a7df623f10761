"""Examples become encoded ones; those that can't teach anything are left out, each counted under its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gguflora.config import Overlong, TrainOn
from gguflora.data.answers import opening
from gguflora.data.encoded import Encoded
from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.labels import encode_example
from gguflora.data.named import Named
from gguflora.data.overlong import fit
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer

WEIGHT_ZERO = "weight 0"
NO_ANSWER = "no message of the assistant"
EMPTY_ANSWER = "empty answer"
TOO_LONG = "longer than max_length"
CUT_AWAY = "longer than max_length, and nothing trained is left of it"
LOST_ANSWERS = "earlier answers not trained, since the chat template writes them differently once later messages follow"
LOST_REASONING = "answers trained without their reasoning, which the chat template does not write"
ALTERED = {
    "truncate-left": "longer than max_length: the beginning was cut off",
    "truncate-right": "longer than max_length: the end was cut off",
    "split": "longer than max_length: split into windows",
}


@dataclass(frozen=True)
class Prepared:
    """What is trained, and what is not.

    Attributes:
        encoded: in the order of the examples; in memory, or in a file (store.py).
        skipped: reason -> sources of the examples that were left out for it.
        altered: what was done -> sources of the examples that are not trained as they stand.
        endless: sources of what is encoded without training a token that ends generation.
    """

    encoded: Sequence[Encoded]
    skipped: Mapping[str, Named]
    altered: Mapping[str, Named] = field(default_factory=dict)
    endless: Named = field(default_factory=Named)


@dataclass
class Account:
    """What has become of the examples that were encoded so far, as `Prepared` has it."""

    skipped: dict[str, Named] = field(default_factory=dict)
    altered: dict[str, Named] = field(default_factory=dict)
    endless: Named = field(default_factory=Named)

    def about(self, encoded: Sequence[Encoded]) -> Prepared:
        """The account of what was encoded."""
        return Prepared(encoded, self.skipped, self.altered, self.endless)


@dataclass(frozen=True)
class PreparedOne:
    """What became of one example: the pieces that are trained, or why there are none, and what was done to it."""

    pieces: tuple[Encoded, ...]
    skipped: str = ""
    altered: tuple[str, ...] = ()


def prepare(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    max_length: int,
    *,
    train_on: TrainOn = "all",
    overlong: Overlong = "drop",
    overlap: int = 1,
) -> Prepared:
    """Encode examples, leaving out those of weight 0 or without an answer, and what `overlong` says of long ones.

    In one of several answers an empty one counts as well, because the model would learn to say nothing there.

    Args:
        examples: those without a source are named by their number.
        tokenizer: the base's.
        template: the base's.
        max_length: most tokens of an example, template included.
        train_on: which tokens of an example are trained.
        overlong: what becomes of examples of more than max_length tokens.
        overlap: tokens that each window of a split one repeats as context, from 1 to max_length - 1.

    Raises:
        DataError: an example can't be encoded, or none is left.
    """
    account = Account()
    encoded = tuple(
        encode_all(
            examples, tokenizer, template, max_length, account, train_on=train_on, overlong=overlong, overlap=overlap
        )
    )
    return account.about(encoded)


def encode_all(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    max_length: int,
    account: Account,
    *,
    train_on: TrainOn = "all",
    overlong: Overlong = "drop",
    overlap: int = 1,
) -> Iterator[Encoded]:
    """As `prepare`, one at a time; what becomes of each is written into `account`, which is complete at the end.

    Raises:
        DataError: an example can't be encoded, or, at the end, there was none to train.
    """
    endings = frozenset(tokenizer.vocabulary.eog)
    empty = True
    for number, example in enumerate(examples, 1):
        named = example if example.source else replace(example, source=f"example {number}")
        one = prepare_one(named, tokenizer, template, max_length, train_on=train_on, overlong=overlong, overlap=overlap)
        if one.skipped:
            account.skipped.setdefault(one.skipped, Named()).append(named.source)
        for what in one.altered:
            account.altered.setdefault(what, Named()).append(named.source)
        for piece in one.pieces:
            empty = False
            if endings.isdisjoint(piece.labels.tolist()):
                account.endless.append(piece.source)
            yield piece
    if empty:
        raise DataError(_nothing_left(account.skipped, max_length))


def prepare_one(
    example: Example,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    max_length: int,
    *,
    train_on: TrainOn = "all",
    overlong: Overlong = "drop",
    overlap: int = 1,
) -> PreparedOne:
    """As `prepare`, for one example; where it teaches nothing there are no pieces, but the reason.

    Raises:
        DataError: it can't be encoded.
    """
    reason = _reason_to_skip(example, train_on)
    if reason:
        return PreparedOne((), reason)
    whole = encode_example(example, tokenizer, template, train_on)
    pieces = fit(whole, max_length, overlong, len(opening(tokenizer.vocabulary)), overlap)
    if not pieces:
        return PreparedOne((), TOO_LONG if overlong == "drop" else CUT_AWAY)
    altered = {
        ALTERED.get(overlong, ""): len(whole.tokens) > max_length,
        LOST_ANSWERS: whole.lost_answers > 0,
        LOST_REASONING: whole.lost_reasoning > 0,
    }
    return PreparedOne(pieces, altered=tuple(what for what, done in altered.items() if done))


def filter_by_length(
    examples: Sequence[Example], tokenizer: Tokenizer, template: ChatTemplate, max_length: int
) -> list[Example]:
    """The examples that take at most max_length tokens, template included.

    Raises:
        DataError: an example can't be encoded.
    """
    return [example for example in examples if len(encode_example(example, tokenizer, template).tokens) <= max_length]


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


def _nothing_left(skipped: Mapping[str, Named], max_length: int) -> str:
    if not skipped:
        return "There is no example to train; give at least one."
    counts = ", ".join(f"{sources.count} {reason}" for reason, sources in skipped.items())
    [first, *_] = [source for sources in skipped.values() for source in sources.first]
    long = TOO_LONG in skipped or CUT_AWAY in skipped
    raised = f" or raise max_length above {max_length}" if long else ""
    return f"No example is left to train ({counts}; the first is {first}); correct the data{raised}."
