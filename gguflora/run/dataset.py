"""From examples to what is trained and what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gguflora.config import DataConfig
from gguflora.data import (
    Conversation,
    Encoded,
    Example,
    Prepared,
    default_validation_share,
    overlap_count,
    prepare,
    train_validation_split,
)
from gguflora.errors import DataError
from gguflora.events import DataReady, FirstExample
from gguflora.run.opening import Base

BAD_RECORD = "bad record"
_NAMED = 3  # skipped examples named for each reason


@dataclass(frozen=True)
class Dataset:
    """Encoded examples, and how they came about.

    Attributes:
        validation_from: where the validation examples are from, in words.
        overlap: validation examples that are trained as well.
    """

    train: Prepared
    validation: Prepared
    validation_from: str
    overlap: int


def make_dataset(
    base: Base, examples: Sequence[Example], validation: Sequence[Example] | None, config: DataConfig, seed: int
) -> Dataset:
    """Split (unless `validation` is given), tokenise and mask.

    Raises:
        DataError: an example can't be encoded, none is left to train, or no answer's end is trained.
    """
    if validation is not None:
        train, source = list(examples), "given"
    else:
        share = config.validation_split
        source = "split off" if share else "none asked for" if share == 0 else "10 % split off, at most 200"
        if share is None:
            share = default_validation_share(len(examples))
            source = source if share else "none below 100 examples"
        train, validation = train_validation_split(examples, share, seed)
    dataset = Dataset(
        train=_prepared(base, train, config),
        validation=_prepared(base, validation, config) if validation else Prepared((), {}),
        validation_from=source,
        overlap=overlap_count(train, validation),
    )
    _require_endings(train, dataset.train)
    return dataset


def data_ready(dataset: Dataset, bad_records: Sequence[str] = ()) -> DataReady:
    """What to tell about a dataset.

    Args:
        dataset: as it is trained.
        bad_records: a sentence, which begins with the place, about each record that could not be used.
    """
    parts = (dataset.train, dataset.validation)
    bad = {BAD_RECORD: [sentence.rstrip(".") for sentence in bad_records]} if bad_records else {}
    skipped = bad | together(part.skipped for part in parts)
    altered = together(part.altered for part in parts)
    encoded = dataset.train.encoded
    lengths = sorted(len(example.tokens) for example in encoded)
    return DataReady(
        train_examples=len(encoded),
        validation_examples=len(dataset.validation.encoded),
        validation_from=dataset.validation_from,
        skipped={reason: len(sources) for reason, sources in skipped.items()},
        skipped_examples={reason: sources[:_NAMED] for reason, sources in skipped.items()},
        train_tokens=sum(lengths),
        trained_tokens=int(sum((example.labels >= 0).sum() for example in encoded)),
        lengths=(lengths[0], lengths[len(lengths) // 2], lengths[-1]),
        altered={what: len(sources) for what, sources in altered.items()},
        altered_examples={what: sources[:_NAMED] for what, sources in altered.items()},
    )


def first_example(base: Base, encoded: Encoded) -> FirstExample:
    """An example's text in pieces, each with whether it is trained."""
    trained = encoded.labels >= 0
    borders = np.flatnonzero(np.diff(trained)) + 1
    pieces = [
        (base.tokenizer.decode(tokens.tolist()), bool(mask[0]))
        for tokens, mask in zip(np.split(encoded.tokens, borders), np.split(trained, borders), strict=True)
    ]
    return FirstExample(encoded.source, pieces)


def _prepared(base: Base, examples: Sequence[Example], config: DataConfig) -> Prepared:
    return prepare(
        examples,
        base.tokenizer,
        base.template,
        config.max_length,
        train_on=config.train_on,
        overlong=config.overlong,
    )


def _require_endings(examples: Sequence[Example], prepared: Prepared) -> None:
    """Refuse conversations none of which trains a token that ends an answer: the model would never stop.

    Raises:
        DataError: that is so; names the first.
    """
    conversations = any(isinstance(example.content, Conversation) for example in examples)
    if conversations and len(prepared.endless) == len(prepared.encoded):
        raise DataError(
            f"No example trains a token that ends an answer (the first is {prepared.endless[0]}), so the model would "
            "never learn to stop; raise --max-length, or use --overlong drop or truncate-left."
        )


def together(parts: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The sources of all parts by reason."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for reason, sources in part.items():
            found.setdefault(reason, []).extend(sources)
    return found


def encoded_hash(encoded: Sequence[Encoded]) -> str:
    """SHA-256, in hex, over tokens, labels and weights in order: what training really sees."""
    digest = hashlib.sha256()
    for example in encoded:
        digest.update(np.int64(len(example.tokens)).tobytes())
        digest.update(example.tokens.astype("<i4").tobytes())
        digest.update(example.labels.astype("<i4").tobytes())
        digest.update(np.float64(example.weight).tobytes())
    return digest.hexdigest()
