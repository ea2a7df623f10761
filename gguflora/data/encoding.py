"""Examples become encoded ones, in this process or in several; those that teach nothing are left out and counted.

Order, tokens, labels, accounts and errors are the same however many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gguflora.config import Overlong, TrainOn
from gguflora.data.encoded import Encoded
from gguflora.data.encoding_process import in_processes
from gguflora.data.example import Example
from gguflora.data.named import Named
from gguflora.data.preparation import CUT_AWAY, TOO_LONG, Preparation, PreparedOne, prepare_one
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer


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
    """Encode examples, leaving out those that teach nothing, and what `overlong` says of long ones.

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
    how = Preparation(tokenizer, template, max_length, train_on, overlong, overlap)
    return account.about(tuple(encode_all(examples, how, account)))


def encode_all(
    examples: Iterable[Example],
    how: Preparation,
    account: Account,
    *,
    processes: int = 1,
    on_done: Callable[[int], None] = lambda _: None,
) -> Iterator[Encoded]:
    """As `prepare`, one at a time; what becomes of each is written into `account`, which is complete at the end.

    Args:
        examples: those without a source are named by their number.
        how: they become tokens.
        account: empty.
        processes: 1 for this one alone, else so many more, each of which takes half a second to start.
        on_done: told after each example how many are done.

    Raises:
        DataError: an example can't be encoded, or, at the end, there was none to train.
        MachineError: a process can't be started, or ended.
    """
    endings = frozenset(how.tokenizer.vocabulary.eog)
    empty = True
    for number, (example, one) in enumerate(_outcomes(_named(examples), how, processes), 1):
        if one.skipped:
            account.skipped.setdefault(one.skipped, Named()).append(example.source)
        for what in one.altered:
            account.altered.setdefault(what, Named()).append(example.source)
        for piece in one.pieces:
            empty = False
            if endings.isdisjoint(piece.labels.tolist()):
                account.endless.append(piece.source)
            yield piece
        on_done(number)
    if empty:
        raise DataError(_nothing_left(account.skipped, how.max_length))


def _outcomes(examples: Iterable[Example], how: Preparation, processes: int) -> Iterator[tuple[Example, PreparedOne]]:
    if processes > 1:
        return in_processes(examples, how, processes)
    return ((example, prepare_one(example, how)) for example in examples)


def _named(examples: Iterable[Example]) -> Iterator[Example]:
    for number, example in enumerate(examples, 1):
        yield example if example.source else replace(example, source=f"example {number}")


def _nothing_left(skipped: Mapping[str, Named], max_length: int) -> str:
    if not skipped:
        return "There is no example to train; give at least one."
    counts = ", ".join(f"{sources.count} {reason}" for reason, sources in skipped.items())
    [first, *_] = [source for sources in skipped.values() for source in sources.first]
    long = TOO_LONG in skipped or CUT_AWAY in skipped
    raised = f" or raise max_length above {max_length}" if long else ""
    return f"No example is left to train ({counts}; the first is {first}); correct the data{raised}."
