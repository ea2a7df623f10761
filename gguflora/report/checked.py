"""What `data check` found in a dataset: a record, which is its JSON, and the lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gguflora.report.text import harmless

_NAMED = 3  # examples of a kind
_BAR = 40  # characters of the histogram's longest bar


@dataclass(frozen=True)
class TemplateDifference:
    """A conversation that llama-server renders otherwise.

    Attributes:
        source: of the example.
        place: character where the texts begin to differ.
        ours, theirs: the texts around it; theirs is llama-server's reason where it renders none.
    """

    source: str
    place: int
    ours: str
    theirs: str


@dataclass(frozen=True)
class TemplateFacts:
    """How many conversations were rendered by llama-server too.

    Attributes:
        equal: how many of those `compared` came out the same; differences: the others.
        problem: why none was compared; empty if some were.
    """

    compared: int
    equal: int
    differences: Sequence[TemplateDifference]
    problem: str


@dataclass(frozen=True)
class DataFacts:
    """A dataset as `train` would use it.

    Attributes:
        examples: in the files; train and validation: those that are used (windows of a split one, and answers with
            documents of their own, count each).
        share: of the tokens that are trained.
        lengths: tokens of the shortest, the median and the longest example.
        histogram: (a power of two, how many examples have no more tokens and more than half of it).
        skipped: examples left out, altered: those not trained as they stand: the sources of the first of them, by
            reason. skipped_counts, altered_counts: how many there are.
        duplicates: examples that repeat an earlier one; overlap: validation examples that are trained as well.
        empty: examples left out for an empty answer.
        endless: what is trained without a token that ends generation.
        warnings: what else to know, in sentences.
        templates: the comparison with llama-server; None where no conversation is in the data.
    """

    examples: int
    train: int
    validation: int
    validation_from: str
    train_tokens: int
    trained_tokens: int
    share: float
    lengths: tuple[int, int, int]
    histogram: Sequence[tuple[int, int]]
    skipped: Mapping[str, Sequence[str]]
    skipped_counts: Mapping[str, int]
    altered: Mapping[str, Sequence[str]]
    altered_counts: Mapping[str, int]
    duplicates: int
    overlap: int
    empty: int
    endless: int
    steps_per_epoch: int
    total_steps: int
    warnings: Sequence[str]
    templates: TemplateFacts | None = None


def as_json(facts: DataFacts) -> dict[str, Any]:
    """The facts as plain data."""
    return asdict(facts)


def lines_of(facts: DataFacts) -> Iterator[str]:
    """The lines for a person, without markup."""
    shortest, median, longest = facts.lengths
    yield f"{facts.examples} examples: {facts.train} to train, {facts.validation} to validate ({facts.validation_from})"
    yield f"{facts.train_tokens} tokens an epoch, {facts.trained_tokens} of them trained ({facts.share:.0%})"
    yield f"{facts.steps_per_epoch} steps an epoch, {facts.total_steps} in all"
    yield f"lengths {shortest} to {longest} tokens, median {median}:"
    most = max(count for _, count in facts.histogram)
    for top, count in facts.histogram:
        yield f"  up to {top:6d}  {count:7d}  {'#' * -(-count * _BAR // most)}".rstrip()
    for kind, counts, named in (
        ("skipped", facts.skipped_counts, facts.skipped),
        ("changed", facts.altered_counts, facts.altered),
    ):
        for reason, count in counts.items():
            first = ", ".join(named[reason][:_NAMED]) + (", ..." if count > _NAMED else "")
            yield f"{kind} {count}: {reason} ({harmless(first)})"
    for count, what in (
        (facts.duplicates, "repeat an earlier one"),
        (facts.overlap, "of those to validate are trained as well: their loss measures memory"),
        (facts.endless, "train no token that ends an answer: the model doesn't learn to stop from them"),
    ):
        if count:
            yield f"{count} examples {what}"
    if facts.templates:
        yield from _templates(facts.templates)
    for warning in facts.warnings:
        yield f"warning: {harmless(warning)}"


def _templates(facts: TemplateFacts) -> Iterator[str]:
    if facts.problem:
        yield f"templates: not compared with llama-server's ({harmless(facts.problem.rstrip('.'))})"
        return
    yield f"templates: {facts.equal} of {facts.compared} equal llama-server's"
    for one in facts.differences:
        yield f"warning: {harmless(one.source)} is rendered otherwise by llama-server, from character {one.place} on:"
        yield f"  ours           {harmless(repr(one.ours))}"
        yield f"  llama-server's {harmless(repr(one.theirs))}"
