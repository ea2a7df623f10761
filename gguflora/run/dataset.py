"""From examples to what is trained and what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gguflora.config import DataConfig
from gguflora.data import (
    Encoded,
    Example,
    Named,
    Prepared,
    choose_validation,
    default_validation_share,
    joined,
    lengths_of,
    overlap,
    repeats,
    trained_tokens,
)
from gguflora.errors import DataError
from gguflora.events import DataReady, FirstExample
from gguflora.run.opening import Base
from gguflora.run.tokens import Encoding, Part, prepared

BAD_RECORD = "bad record"
_NAMED = 3  # skipped examples named for each reason


@dataclass(frozen=True)
class Dataset:
    """Encoded examples, and how they came about.

    Attributes:
        validation_from: where the validation examples are from, in words.
        given: examples, before any was left out.
        duplicates: of the examples to train (or to split), those that repeat an earlier one.
        conversations: whether one of those is a conversation.
        overlap: validation examples that are trained as well.
    """

    train: Prepared
    validation: Prepared
    validation_from: str
    given: int
    duplicates: int
    conversations: bool
    overlap: int


def make_dataset(
    base: Base,
    examples: Iterable[Example],
    validation: Iterable[Example] | None,
    config: DataConfig,
    seed: int,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
) -> Dataset:
    """Split (unless `validation` is given), tokenise and mask.

    Args:
        base: whose tokens and template they get.
        examples: gone through two or three times, and never held (a mere iterator is made a list).
        validation: likewise.
        config: how they are split and encoded.
        seed: decides the split.
        encoding: how they are gone about.

    Raises:
        DataError: an example can't be encoded, none is left to train, or no answer's end is trained.
    """
    examples = list(examples) if isinstance(examples, Iterator) else examples
    validation = list(validation) if isinstance(validation, Iterator) else validation
    train, measured, source = _parts(examples, validation, config, seed)
    given, contents = validation is not None, train.known.contents  # a split has no content on both sides
    dataset = Dataset(
        train=prepared(base, train, config, encoding),
        validation=prepared(base, measured, config, encoding) if len(measured) else Prepared((), {}),
        validation_from=source,
        given=len(train.wanted) + (len(measured) if given else 0),
        duplicates=repeats(contents),
        conversations=bool(train.known.conversations.any()),
        overlap=overlap(contents, measured.known.contents) if given else 0,
    )
    _require_endings(train, dataset.train)
    return dataset


def _parts(
    examples: Iterable[Example], validation: Iterable[Example] | None, config: DataConfig, seed: int
) -> tuple[Part, Part, str]:
    """What is trained, what is measured, and where the latter is from, in words."""
    whole = Part.whole(examples)
    if validation is not None:
        return whole, Part.whole(validation), "given"
    share = config.validation_split
    source = "split off" if share else "none asked for" if share == 0 else "10 % split off, at most 200"
    if share is None:
        share = default_validation_share(len(whole))
        source = source if share else "none below 100 examples"
    chosen = choose_validation(whole.known.contents, share, seed)
    return replace(whole, wanted=~chosen), replace(whole, wanted=chosen), source


def data_ready(dataset: Dataset, bad_records: Named = Named()) -> DataReady:  # noqa: B008 (only read)
    """What to tell about a dataset.

    Args:
        dataset: as it is trained.
        bad_records: a sentence, which begins with the place, about each record that could not be used.
    """
    sentences = [sentence.rstrip(".") for sentence in bad_records.first]  # they stand in a list
    skipped, altered = skipped_of(dataset, Named(bad_records.count, sentences)), altered_of(dataset)
    encoded = dataset.train.encoded
    lengths = np.sort(lengths_of(encoded))
    return DataReady(
        train_examples=len(encoded),
        validation_examples=len(dataset.validation.encoded),
        validation_from=dataset.validation_from,
        skipped={reason: sources.count for reason, sources in skipped.items()},
        skipped_examples={reason: sources.first[:_NAMED] for reason, sources in skipped.items()},
        train_tokens=int(lengths.sum()),
        trained_tokens=trained_tokens(encoded),
        lengths=(int(lengths[0]), int(lengths[len(lengths) // 2]), int(lengths[-1])),
        altered={what: sources.count for what, sources in altered.items()},
        altered_examples={what: sources.first[:_NAMED] for what, sources in altered.items()},
    )


def skipped_of(dataset: Dataset, bad_records: Named) -> dict[str, Named]:
    """What was left out of a dataset, by reason; `bad_records` has a sentence about each record."""
    bad = {BAD_RECORD: bad_records} if bad_records.count else {}
    return bad | _together([dataset.train.skipped, dataset.validation.skipped])


def altered_of(dataset: Dataset) -> dict[str, Named]:
    """What of a dataset is not trained as it stands, by what was done."""
    return _together([dataset.train.altered, dataset.validation.altered])


def first_example(base: Base, encoded: Encoded) -> FirstExample:
    """An example's text in pieces, each with whether it is trained."""
    trained = encoded.labels >= 0
    borders = np.flatnonzero(np.diff(trained)) + 1
    pieces = [
        (base.tokenizer.decode(tokens.tolist()), bool(mask[0]))
        for tokens, mask in zip(np.split(encoded.tokens, borders), np.split(trained, borders), strict=True)
    ]
    return FirstExample(encoded.source, pieces)


def _require_endings(train: Part, trained: Prepared) -> None:
    """Refuse conversations none of which trains a token that ends an answer: the model would never stop.

    Raises:
        DataError: that is so; names the first.
    """
    conversations = train.known.conversations[train.wanted].any()
    if conversations and trained.endless.count == len(trained.encoded):
        raise DataError(
            f"No example trains a token that ends an answer (the first is {trained.endless.first[0]}), so the model "
            "would never learn to stop; raise --max-length, or use --overlong drop or truncate-left."
        )


def _together(parts: Sequence[Mapping[str, Named]]) -> dict[str, Named]:
    """The sources of all parts by reason."""
    reasons = dict.fromkeys(reason for part in parts for reason in part)
    return {reason: joined(part[reason] for part in parts if reason in part) for reason in reasons}


def encoded_hash(encoded: Sequence[Encoded]) -> str:
    """SHA-256, in hex, over tokens, labels and weights in order: what training really sees."""
    digest = hashlib.sha256()
    for example in encoded:
        digest.update(np.int64(len(example.tokens)).tobytes())
        digest.update(example.tokens.astype("<i4").tobytes())
        digest.update(example.labels.astype("<i4").tobytes())
        digest.update(np.float64(example.weight).tobytes())
    return digest.hexdigest()
