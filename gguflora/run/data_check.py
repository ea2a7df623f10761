"""What `gguflora data show` and `gguflora data check` do: a dataset as the model would see it. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguflora.config import DataConfig, TemplateConfig, TrainingConfig
from gguflora.data import Encoded, Example, Named, lengths_of, plan_steps, prepare_one
from gguflora.data.preparation import EMPTY_ANSWER
from gguflora.events import Progress, unseen
from gguflora.report.checked import DataFacts
from gguflora.report.shown import ShownExample, ShownPiece
from gguflora.run.dataset import altered_of, data_ready, make_dataset, skipped_of
from gguflora.run.opening import Base, open_base
from gguflora.run.template_check import compare
from gguflora.run.tokens import Encoding, preparation


def show(
    model: Path, examples: Iterable[Example], config: DataConfig, template: TemplateConfig, limit: int
) -> Iterator[ShownExample]:
    """The first `limit` examples that can be trained, as training would see them.

    Raises:
        GgufloraError: the model or an example can't be used.
    """
    base = open_base(model, template)
    how = preparation(base, config)
    left = limit
    for number, example in enumerate(examples, 1):
        named = example if example.source else replace(example, source=f"example {number}")
        one = prepare_one(named, how)
        notes = one.altered
        for encoded in one.pieces:
            if left == 0:
                return
            left -= 1
            yield ShownExample(encoded.source, tuple(_pieces(base, encoded)), notes)
            notes = ()


def check(
    model: Path,
    examples: Iterable[Example],
    validation: Iterable[Example] | None,
    config: DataConfig,
    template: TemplateConfig,
    training: TrainingConfig,
    bad_records: Named = Named(),  # noqa: B008 (only read)
    progress: Progress = unseen,
) -> DataFacts:
    """The figures of a dataset as `train` would use it.

    Args:
        model: GGUF file.
        examples: to train.
        validation: to measure on; None: some of the examples are split off as `config` says.
        config: which examples are trained.
        template: how conversations become text.
        training: the seed of the split, and how large a step is.
        bad_records: what was wrong with records that were left out.
        progress: told how far encoding is.

    Raises:
        GgufloraError: as training would before its first step.
    """
    base = open_base(model, template)
    examples = list(examples) if isinstance(examples, Iterator) else examples
    dataset = make_dataset(base, examples, validation, config, training.seed, Encoding(progress=progress))
    ready = data_ready(dataset)
    lengths = lengths_of(dataset.train.encoded).tolist()
    plan = plan_steps(lengths, training)
    skipped, altered = skipped_of(dataset, bad_records), altered_of(dataset)
    return DataFacts(
        examples=dataset.given,
        train=ready.train_examples,
        validation=ready.validation_examples,
        validation_from=ready.validation_from,
        train_tokens=ready.train_tokens,
        trained_tokens=ready.trained_tokens,
        share=ready.trained_tokens / ready.train_tokens,
        lengths=ready.lengths,
        histogram=histogram(lengths),
        skipped={reason: sources.first for reason, sources in skipped.items()},
        skipped_counts={reason: sources.count for reason, sources in skipped.items()},
        altered={what: sources.first for what, sources in altered.items()},
        altered_counts={what: sources.count for what, sources in altered.items()},
        duplicates=dataset.duplicates,
        overlap=dataset.overlap,
        empty=skipped.get(EMPTY_ANSWER, Named()).count,
        endless=dataset.train.endless.count,
        steps_per_epoch=plan.ends[0],
        total_steps=plan.total,
        warnings=[base.template.notice] if base.template.notice else [],
        templates=compare(base, examples),
    )


def histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """How many of `lengths` lie up to each power of two and above half of it.

    >>> histogram([3, 4, 5, 30])
    [(4, 2), (8, 1), (16, 0), (32, 1)]
    """
    counts = Counter(max(0, length - 1).bit_length() for length in lengths)
    return [(2**power, counts[power]) for power in range(min(counts), max(counts) + 1)]


def _pieces(base: Base, encoded: Encoded) -> Iterator[ShownPiece]:
    trained = encoded.labels >= 0
    borders = np.flatnonzero(np.diff(trained)) + 1
    decode = base.tokenizer.decode
    for tokens, mask in zip(np.split(encoded.tokens, borders), np.split(trained, borders), strict=True):
        ids = tokens.tolist()
        yield ShownPiece(decode(ids), tuple((id, decode([id])) for id in ids), bool(mask[0]))
