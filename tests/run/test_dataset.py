"""What is told about a dataset is what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguflora.config import DataConfig
from gguflora.data import Encoded, Example, Named
from gguflora.errors import DataError
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, first_example, make_dataset
from gguflora.run.opening import Base, model_loaded, open_base
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def some(count: int) -> list[Example]:
    return [Example.completion(f"q{n}", f"a{n}") for n in range(count)]


def split(base: Base, count: int, config: DataConfig | None = None, seed: int = 0) -> Dataset:
    return make_dataset(base, some(count), None, config or DataConfig(), seed)


@pytest.mark.parametrize(
    ("count", "config", "sizes", "words"),
    [
        (99, DataConfig(), (99, 0), "none below 100 examples"),
        (100, DataConfig(), (90, 10), "10 % split off, at most 200"),
        (2500, DataConfig(), (2300, 200), "10 % split off, at most 200"),
        (100, DataConfig(validation_split=0.0), (100, 0), "none asked for"),
        (10, DataConfig(validation_split=0.3), (7, 3), "split off"),
    ],
)
def test_the_split_is_the_default_or_the_one_asked_for(
    base: Base, count: int, config: DataConfig, sizes: tuple[int, int], words: str
):
    dataset = split(base, count, config)
    assert (len(dataset.train.encoded), len(dataset.validation.encoded)) == sizes
    assert dataset.validation_from == words
    assert dataset.overlap == 0


def test_the_seed_decides_the_split(base: Base):
    config = DataConfig(validation_split=0.3)
    hashes = [encoded_hash(split(base, 20, config, seed).train.encoded) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_given_validation_is_not_split_and_overlap_is_counted(base: Base):
    dataset = make_dataset(base, some(10), [*some(3), Example.completion("x", "y")], DataConfig(), 0)
    assert (len(dataset.train.encoded), len(dataset.validation.encoded)) == (10, 4)
    assert (dataset.validation_from, dataset.overlap) == ("given", 3)


def test_validation_examples_that_are_all_skipped_are_an_error(base: Base):
    with pytest.raises(DataError, match="No example is left"):
        make_dataset(base, some(3), [Example.completion("a", "")], DataConfig(), 0)


def test_the_figures_add_up(base: Base):
    """Each "qN" is two bytes, each "aN" is two and the end: 5 tokens, 3 trained. The one with "aaaa" has 7 and 5."""
    examples = [
        *some(3),
        Example.completion("q9", "aaaa"),
        replace(Example.completion("q", "a"), source="d.jsonl:5", weight=0.0),
        *[replace(Example.completion("q", " "), source=f"d.jsonl:{line}") for line in range(6, 12)],
    ]
    ready = data_ready(make_dataset(base, examples, None, DataConfig(), 0))
    assert (ready.train_examples, ready.validation_examples) == (4, 0)
    assert (ready.train_tokens, ready.trained_tokens) == (3 * 5 + 7, 3 * 3 + 5)
    assert ready.lengths == (5, 5, 7)
    assert ready.skipped == {"weight 0": 1, "empty answer": 6}
    assert ready.skipped_examples == {
        "weight 0": ["d.jsonl:5"],
        "empty answer": ["d.jsonl:6", "d.jsonl:7", "d.jsonl:8"],
    }


def test_records_that_could_not_be_read_are_counted_and_the_first_named(base: Base):
    sentences = [f"d.jsonl:{line}: the prompt is null; it must be text." for line in range(4, 9)]
    ready = data_ready(make_dataset(base, some(3), None, DataConfig(), 0), Named(5, sentences))
    assert ready.skipped == {"bad record": 5}
    assert ready.skipped_examples == {
        "bad record": [f"d.jsonl:{line}: the prompt is null; it must be text" for line in (4, 5, 6)]
    }


def test_the_first_example_is_shown_whole_with_its_trained_part(base: Base):
    example = Example.messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}], weight=1.0)
    encoded = make_dataset(base, [replace(example, source="d.jsonl:1")], None, DataConfig(), 0).train.encoded[0]
    shown = first_example(base, encoded)
    assert shown.source == "d.jsonl:1"
    assert shown.pieces == [
        (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("Yes<|im_end|>", True),
        ("\n", False),
    ]


def test_the_hash_sees_every_change_of_what_is_trained():
    def encoded(tokens: list[int], labels: list[int], weight: float = 1.0, source: str = "a:1") -> Encoded:
        return Encoded(np.array(tokens, np.int32), np.array(labels, np.int32), weight, source)

    one, two = encoded([1, 2, 3], [-100, 2, 3]), encoded([4, 5], [-100, 5])
    hashes = [
        encoded_hash([one, two]),
        encoded_hash([two, one]),
        encoded_hash([one]),
        encoded_hash([]),
        encoded_hash([encoded([1, 2, 9], [-100, 2, 3]), two]),
        encoded_hash([encoded([1, 2, 3], [-100, -100, 3]), two]),
        encoded_hash([encoded([1, 2, 3], [-100, 2, 3], 0.5), two]),
        encoded_hash([encoded([1, 2, 3, 4], [-100, 2, 3, -100]), encoded([5], [-100])]),
    ]
    assert len(set(hashes)) == len(hashes)
    moved = encoded([1, 2, 3], [-100, 2, 3], source="elsewhere:9")
    assert encoded_hash([moved, two]) == hashes[0], "the same data in another file is the same data"


def test_what_is_told_about_a_model_is_in_its_file(base: Base, tmp_path: Path):
    told = model_loaded(base)
    assert (told.name, told.architecture, told.types) == ("tiny", "llama", {"F32": 29})
    assert told.file_bytes == base.gguf.path.stat().st_size
    layer = 48 * 60 * 2 + 48 * 20 * 2 + 48 * 88 * 3 + 2 * 48  # q and o, k and v, gate, up and down, two norms
    assert told.parameters == 300 * 48 + 48 + 3 * layer
    unnamed = tmp_path / "my-model.gguf"
    unnamed.write_bytes(base.gguf.path.read_bytes().replace(b"general.name", b"general.nome"))
    assert model_loaded(open_base(unnamed)).name == "my-model"
