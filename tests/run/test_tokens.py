"""Tokens of large data are kept in a file and used again; they are the same as in memory, or they are made again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TrainingConfig
from gguflora.data import (
    Catalogue,
    EncodedStore,
    Example,
    Prepared,
    StreamedExamples,
    catalogue_of,
    load_jsonl,
    prepare,
)
from gguflora.errors import DataError
from gguflora.events import Event, StepDone
from gguflora.run import tokens
from gguflora.run.dataset import Dataset, data_ready, encoded_hash, make_dataset
from gguflora.run.opening import Base, open_base
from gguflora.run.tokens import Encoding, Part, cache_folder, prepared, processes_for
from gguflora.run.training import Outcome, Request, run
from tests.runs import tree, write_dataset
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
MIXED = [
    Example.completion("q1", "a1"),
    Example.chat(None, "Hi", "Hello"),
    Example.completion("q2", "a2", weight=0.5),
    Example.completion("q3", " "),
    Example.completion("q4", "a" * 50),
    Example.completion("q1", "a1", weight=0.0),
]
"""One of each: weights, a conversation, an empty answer, one that is cut, one of weight 0."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and all data is large."""
    monkeypatch.setattr("gguflora.run.tokens.MANY", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguflora" / "tokens"


def part(examples: list[Example]) -> Part:
    return Part(examples, catalogue_of(examples), np.ones(len(examples), np.bool_))


def made(base: Base, examples: list[Example], **options: Any) -> Prepared:
    return prepared(base, part(examples), DataConfig(**options))


def account(found: Prepared) -> tuple[object, ...]:
    return (
        encoded_hash(found.encoded),
        [one.source for one in found.encoded],
        found.skipped,
        found.altered,
        found.endless,
    )


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_all_is_as_in_memory(base: Base, cache: Path):
    found = made(base, MIXED, max_length=40, overlong="truncate-right")
    assert isinstance(found.encoded, EncodedStore)
    expected = prepare(MIXED, base.tokenizer, base.template, 40, overlong="truncate-right")
    assert account(found) == account(expected)
    assert (len(found.skipped), len(found.altered), found.endless.count) == (3, 1, 1)  # so all are compared
    assert len(names(cache)) == 1


def test_what_is_kept_is_used_again(base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = account(made(base, MIXED))
    monkeypatch.setattr("gguflora.run.tokens.encode_all", lambda *_, **__: pytest.fail("it was encoded again"))
    assert account(made(base, MIXED)) == first
    assert len(names(cache)) == 1
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        made(base, MIXED[1:])


CHANGED: dict[str, list[Example]] = {
    "content": [Example.completion("q1", "a0"), *MIXED[1:]],
    "weight": [replace(MIXED[0], weight=2.0), *MIXED[1:]],
    "source": [replace(MIXED[0], source="d.jsonl:1"), *MIXED[1:]],
    "order": [MIXED[1], MIXED[0], *MIXED[2:]],
    "fewer": MIXED[:-1],
}


@pytest.mark.parametrize("what", CHANGED)
def test_other_examples_have_another_file(what: str, base: Base, cache: Path):
    found = [made(base, examples) for examples in (MIXED, CHANGED[what])]
    assert len(names(cache)) == 2
    assert account(found[1]) == account(prepare(CHANGED[what], base.tokenizer, base.template, 2048))


@pytest.mark.parametrize("options", [{"max_length": 30}, {"overlong": "split"}, {"train_on": "everything"}])
def test_other_options_have_another_file(options: dict[str, Any], base: Base, cache: Path):
    for chosen in ({}, options):
        made(base, MIXED, **chosen)
    assert len(names(cache)) == 2


def test_another_overlap_has_another_file(base: Base, cache: Path):
    for overlap in (1, 2):
        made(base, MIXED, max_length=40, overlong="split", overlap=overlap)
    assert len(names(cache)) == 2


def test_another_template_its_switches_and_the_day_have_another_file(base: Base, cache: Path):
    source = base.template.source
    templates = [
        base.template,
        replace(base.template, source=source.replace("helpful", "kind")),
        replace(base.template, switches={"enable_thinking": False}),
        replace(base.template, source=source + "{# date_string #}"),
    ]
    days = [replace(template, now=template.now.replace(year=2020)) for template in templates]
    for template in (*templates, *days):
        found = tokens._key(replace(base, template=template), part(MIXED), DataConfig())
        (cache / found).parent.mkdir(parents=True, exist_ok=True)
        (cache / found).touch()
    assert len(names(cache)) == 5  # the day makes two of the last alone


def test_another_tokenizer_or_other_code_has_another_file(base: Base, monkeypatch: pytest.MonkeyPatch):
    other = replace(base, identity=replace(base.identity, tokenizer="0" * 64))
    keys = {tokens._key(one, part(MIXED), DataConfig()) for one in (base, other)}
    monkeypatch.setattr("gguflora.run.tokens._code", lambda: "other")
    keys.add(tokens._key(base, part(MIXED), DataConfig()))
    assert len(keys) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another's"])
def test_a_damaged_file_is_made_again_with_a_warning(
    damage: str, base: Base, cache: Path, caplog: pytest.LogCaptureFixture
):
    first = account(made(base, MIXED))
    [path] = cache.iterdir()
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    path.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b"", "another's": b"x" * 500}[damage])
    assert account(made(base, MIXED)) == first
    assert "tokens are made again" in caplog.text
    assert path.read_bytes() == data


def test_a_cache_that_cannot_be_made_is_no_error(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder can't be made below a file, even by root
    assert account(made(base, MIXED)) == account(prepare(MIXED, base.tokenizer, base.template, 2048))
    assert "the token cache can't be used" in caplog.text


def test_a_cache_without_room_is_no_error(
    base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(path: Path, _: object) -> None:
        raise tokens.MachineError(f"{path} could not be written: No space left on device; make room there.")

    monkeypatch.setattr("gguflora.run.tokens.write_atomically", full)
    assert account(made(base, MIXED)) == account(prepare(MIXED, base.tokenizer, base.template, 2048))
    assert "No space left" in caplog.text
    assert names(cache) == []


def test_without_a_home_there_is_no_cache(base: Base, monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FileNotFoundError):
        cache_folder()
    assert len(made(base, MIXED).encoded) == 4


def test_off_leaves_nothing_anywhere(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    before = tree(tmp_path)
    found = made(base, MIXED, token_cache="off")
    assert isinstance(found.encoded, EncodedStore)
    assert account(found) == account(prepare(MIXED, base.tokenizer, base.template, 2048))
    assert tree(tmp_path) == before


def test_few_examples_stay_in_memory(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gguflora.run.tokens.MANY", len(MIXED) + 1)
    assert isinstance(made(base, MIXED).encoded, tuple)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("gguflora.run.tokens.MUCH", catalogue_of(MIXED).characters)
    assert isinstance(made(base, MIXED).encoded, EncodedStore)


def test_what_was_not_used_for_longest_is_removed_first(base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first, second, third = ([Example.completion(f"q{n}", "a")] for n in range(3))
    for age, examples in ((200, first), (100, second)):
        before = set(cache.iterdir()) if cache.exists() else set()
        made(base, examples)
        [path] = set(cache.iterdir()) - before
        os.utime(path, (time.time() - age, time.time() - age))
    kept, size = path, path.stat().st_size
    made(base, first)  # used: now the second one is the oldest
    monkeypatch.setattr("gguflora.run.tokens.MOST_BYTES", 2 * size)
    made(base, third)
    assert len(names(cache)) == 2
    assert not kept.exists()
    monkeypatch.setattr("gguflora.run.tokens.MOST_BYTES", 0)
    assert len(made(base, second).encoded) == 1
    assert names(cache) == [kept.name]  # the one in use stays, larger than allowed as it is


KILLED = """
import os, signal, sys
from pathlib import Path
import gguflora.run.tokens as tokens
from gguflora.data import encode_all
from gguflora.config import DataConfig
from gguflora.run.opening import open_base
from tests.run.test_tokens import MIXED, part

def killed(*arguments, **options):
    for number, one in enumerate(encode_all(*arguments, **options)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield one

tokens.MANY, tokens.encode_all = 1, killed
tokens.prepared(open_base(Path(sys.argv[1])), part(MIXED), DataConfig())
"""


def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_is_trusted(base: Base, cache: Path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(base.gguf.path)], cwd=ROOT, timeout=60, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    [left] = cache.iterdir()
    assert left.name.endswith(".partial")
    assert account(made(base, MIXED)) == account(prepare(MIXED, base.tokenizer, base.template, 2048))
    assert len(names(cache)) == 2  # it might be another run's, which goes on
    os.utime(left, (time.time() - 2 * 24 * 3600,) * 2)
    made(base, MIXED[:1])
    assert not left.exists()


def test_data_that_change_while_they_are_read_are_refused(base: Base, tmp_path: Path):
    path = write_dataset(tmp_path / "d.jsonl", 5)
    whole = path.read_text()
    examples = StreamedExamples([path])
    known = Part(examples, catalogue_of(examples), np.ones(5, np.bool_))
    first, rest = whole.split("\n", 1)
    for changed in (rest, whole + first + "\n", whole.replace("x 3", "y 3")):
        path.write_text(changed)
        with pytest.raises(DataError, match="The data changed while they were read"):
            prepared(base, known, DataConfig())
    path.write_text(whole)
    assert len(prepared(base, known, DataConfig()).encoded) == 5


def test_several_processes_leave_the_same_file(base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Byte for byte, and the same progress is told."""
    seen: list[list[tuple[int, int]]] = []
    files = []
    for each in (1e9, 1e-9):  # seconds of work that are worth a process
        monkeypatch.setattr("gguflora.run.tokens._EACH", each)
        seen.append([])
        tell = seen[-1]
        encoding = Encoding(cores=2, progress=lambda done, total, tell=tell: tell.append((done, total)))
        assert processes_for(part(MIXED), 2) == (1 if each > 1 else 2)
        prepared(base, part(MIXED), DataConfig(), encoding)
        [path] = cache.iterdir()
        files.append(path.read_bytes())
        path.unlink()
    assert files[0] == files[1]
    assert seen[0] == seen[1] == [(done, len(MIXED)) for done in range(1, len(MIXED) + 1)]


def test_processes_are_started_for_much_work_alone(monkeypatch: pytest.MonkeyPatch):
    """As many as there are cores; only what is wanted counts."""
    monkeypatch.setattr("gguflora.run.tokens._MOST_PROCESSES", 5)
    ids, chats = np.zeros((10_000, 2), np.uint64), np.ones(10_000, np.bool_)
    known = Catalogue(ids, ids, chats, 1_000_000)
    much = Part((), replace(known, characters=10**9), chats)
    assert [processes_for(much, cores) for cores in (1, 2, 4, 64)] == [1, 2, 4, 5]
    assert processes_for(replace(much, known=known), 64) == 2
    assert processes_for(replace(much, known=known, wanted=np.arange(10_000) < 2_000), 64) == 1
    assert processes_for(replace(much, known=replace(known, conversations=~chats)), 64) == 1  # completions are quick


def split(base: Base, path: Path, config: DataConfig) -> Dataset:
    return make_dataset(base, StreamedExamples([path]), None, config, 3)


def test_a_dataset_from_files_is_that_from_a_list(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_dataset(tmp_path / "d.jsonl", 60)
    path.write_text(path.read_text() + path.read_text()[:2000])  # some twice, the last one cut
    path.write_text(path.read_text().rpartition("\n")[0] + "\n")
    config = DataConfig(validation_split=0.2, max_length=60)
    streamed = split(base, path, config)
    monkeypatch.setattr("gguflora.run.tokens.MANY", 10**9)
    listed = make_dataset(base, load_jsonl(path), None, config, 3)
    assert isinstance(streamed.train.encoded, EncodedStore)
    assert isinstance(listed.train.encoded, tuple)
    assert data_ready(streamed) == data_ready(listed)
    assert account(streamed.train) == account(listed.train)
    assert account(streamed.validation) == account(listed.validation)
    assert (streamed.given, streamed.duplicates, streamed.overlap) == (listed.given, listed.duplicates, 0)
    assert listed.duplicates > 0


def test_an_iterator_can_be_given_and_is_held(base: Base):
    def some() -> Iterator[Example]:
        yield from MIXED

    assert make_dataset(base, some(), some(), DataConfig(), 0).given == 2 * len(MIXED)


def trained(base: Base, examples: Any, folder: Path) -> list[Event]:
    request = Request(
        base.gguf.path,
        examples,
        None,
        LoraConfig(rank=4, alpha=8.0),
        DataConfig(validation_split=0.2),
        TrainingConfig(learning_rate=1e-2, epochs=2, threads=1),
        folder,
        ComputeConfig(dtype="float32", kernels="torch"),
    )
    return list(run(request, Outcome()))


def test_training_from_files_is_training_from_a_list_to_the_bit(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    path = write_dataset(tmp_path / "d.jsonl", 20)
    streamed = trained(base, StreamedExamples([path]), tmp_path / "streamed")
    monkeypatch.setattr("gguflora.run.tokens.MANY", 10**9)
    listed = trained(base, load_jsonl(path), tmp_path / "listed")
    losses = [[event.loss for event in events if isinstance(event, StepDone)] for events in (streamed, listed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    adapters = [(tmp_path / name / "final_adapter.gguf").read_bytes() for name in ("streamed", "listed")]
    assert adapters[0] == adapters[1]
