"""From documents to an epoch's rows: each position is trained exactly once, however it is split, ordered and packed."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gguflora.config import TrainingConfig
from gguflora.data.encoded import Encoded
from gguflora.data.overlong import fit
from gguflora.data.packing import pack
from gguflora.data.steps import plan_steps
from gguflora.data.store import lengths_of

EPOCHS = 2
PLACES = 100
"""The token at position p of example e is 100 e + p, so a label tells which position it trains."""


def document(number: int, trained: list[bool]) -> Encoded:
    """Its first token is never trained."""
    tokens = np.arange(number * PLACES, number * PLACES + 1 + len(trained), dtype=np.int32)
    labels = np.where([False, *trained], tokens, np.int32(-100))
    return Encoded(tokens, labels, 1.0, f"d.jsonl:{number}")


documents = st.lists(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), min_size=1, max_size=6)
sizes = st.one_of(
    st.builds(lambda size: {"batch_size": size}, st.integers(1, 9)),
    st.builds(lambda size: {"batch_tokens": size}, st.integers(1, 90)),
)


@given(documents, st.integers(2, 20), st.data(), st.integers(0, 1), sizes, st.integers(1, 50), st.integers(0, 9))
def test_every_position_is_trained_exactly_once_an_epoch(
    given_: list[list[bool]],
    max_length: int,
    data: st.DataObject,
    opening: int,
    size: dict[str, int],
    row: int,
    seed: int,
):
    """With any overlap: what windows share is context in all of them but one."""
    overlap = data.draw(st.integers(1, max_length - 1))
    examples = [document(number, trained) for number, trained in enumerate(given_)]
    pieces = [piece for one in examples for piece in fit(one, max_length, "split", opening, overlap)]
    plan = plan_steps(lengths_of(pieces).tolist(), TrainingConfig(epochs=EPOCHS, seed=seed, **size))
    trained: list[Counter[int]] = [Counter() for _ in range(EPOCHS)]
    for step in range(plan.total):
        chosen = [pieces[index] for index in plan.examples(step)]
        for packed in pack(chosen, row):
            trained[plan.epoch(step + 1) - 1].update(packed.labels[packed.labels >= 0].tolist())
    once = Counter({int(label): 1 for one in examples for label in one.labels if label >= 0})
    assert trained == [once] * EPOCHS
