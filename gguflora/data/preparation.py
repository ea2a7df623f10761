"""Examples become encoded ones; those that can't teach anything are left out, each counted under its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gguflora.config import Overlong, TrainOn
from gguflora.data.encoded import Encoded
from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.labels import encode_example
from gguflora.data.overlong import fit
from gguflora.data.scene import opening
from gguflora.errors import DataError
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
class Prepared:
    """What is trained, and what is not.

    Attributes:
        encoded: in the order of the examples; in memory, or in a file (store.py).
        skipped: reason -> sources of the examples that were left out for it.
        altered: what was done -> sources of the examples that are not trained as they stand.
        endless: sources of what is encoded without training a token that ends generation.
    """

    encoded: Sequence[Encoded]
    skipped: Mapping[str, tuple[str, ...]]
    altered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    endless: tuple[str, ...] = ()


@dataclass
class Account:
    """What has become of the examples that were encoded so far, as `Prepared` has it."""

    skipped: dict[str, list[str]] = field(default_factory=dict)
    altered: dict[str, list[str]] = field(default_factory=dict)
    endless: list[str] = field(default_factory=list)

    def about(self, encoded: Sequence[Encoded]) -> Prepared:
        """The account of what was encoded."""
        return Prepared(encoded, _frozen(self.skipped), _frozen(self.altered), tuple(self.endless))


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

    Raises:
        DataError: an example can't be encoded, or none is left.
    """
    account = Account()
    encoded = tuple(
        encode_all(examples, tokenizer, template, max_length, account, train_on=train_on, overlong=overlong)
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
) -> Iterator[Encoded]:
    """As `prepare`, one at a time; what becomes of each is written into `account`, which is complete at the end.

    Raises:
        DataError: an example can't be encoded, or, at the end, there was none to train.
    """
    endings = frozenset(tokenizer.vocabulary.eog)
    empty = True
    for number, example in enumerate(examples, 1):
        named = example if example.source else replace(example, source=f"example {number}")
        one = prepare_one(named, tokenizer, template, max_length, train_on=train_on, overlong=overlong)
        if one.skipped:
            account.skipped.setdefault(one.skipped, []).append(named.source)
        for what in one.altered:
            account.altered.setdefault(what, []).append(named.source)
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
) -> PreparedOne:
    """As `prepare`, for one example; where it teaches nothing there are no pieces, but the reason.

    Raises:
        DataError: it can't be encoded.
    """
    reason = _reason_to_skip(example, train_on)
    if reason:
        return PreparedOne((), reason)
    begun = len(opening(tokenizer.vocabulary))
    pieces: list[Encoded] = []
    done: set[str] = set()
    for number, document in enumerate(encode_example(example, tokenizer, template, train_on)):
        fitting = fit(document, max_length, overlong, begun)
        pieces += fitting
        done |= {OWN_DOCUMENTS} if number else set()
        done |= _altered(document, template)
        if len(document.tokens) > max_length:
            done.add(ALTERED[overlong] if fitting else LONG_DOCUMENTS)
    if not pieces:
        return PreparedOne((), TOO_LONG if overlong == "drop" else CUT_AWAY)
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


def _frozen(sources: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {reason: tuple(of_reason) for reason, of_reason in sources.items()}


def _nothing_left(skipped: Mapping[str, Sequence[str]], max_length: int) -> str:
    if not skipped:
        return "There is no example to train; give at least one."
    counts = ", ".join(f"{len(sources)} {reason}" for reason, sources in skipped.items())
    [first, *_] = [source for sources in skipped.values() for source in sources]
    long = TOO_LONG in skipped or CUT_AWAY in skipped
    raised = f" or raise max_length above {max_length}" if long else ""
    return f"No example is left to train ({counts}; the first is {first}); correct the data{raised}."
