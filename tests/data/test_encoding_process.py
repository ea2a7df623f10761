"""Several processes encode examples as one does: the same tokens, labels, accounts and errors, in the same order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguflora.data import Account, Example, Preparation, encode_all
from gguflora.errors import DataError, MachineError
from gguflora.gguf import open_gguf
from gguflora.processes import start_module
from gguflora.tokenizer import load_template, load_tokenizer
from tests.tiny import tiny_llama
from tests.tokenizer.spm_vocabulary import spm_metadata, write_spm_model

Told = tuple[list[tuple[Any, ...]], Account, str]
"""What was encoded, the account of it, and the error that ended it."""


def preparation(model: Path) -> Preparation:
    gguf = open_gguf(model)
    return Preparation(load_tokenizer(gguf), load_template(gguf, source="chatml"), 40, overlong="truncate-right")


@pytest.fixture(scope="module")
def how(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    return preparation(tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.data.encoding_process.CHUNK", 3)


def some(count: int) -> list[Example]:
    """Of every kind: uneven lengths, weights, empty answers, some that are cut, with and without a source."""
    examples = []
    for n in range(count):
        one = Example.completion(f"say {n}", " " if n % 7 == 3 else "it is " + "x " * (n % 50), weight=n % 5 / 2)
        examples.append(replace(one, source=f"d.jsonl:{n + 1}") if n % 3 else one)
    return examples


def told(examples: Any, how: Preparation, processes: int) -> Told:
    account, found, error = Account(), [], ""
    try:
        for one in encode_all(examples, how, account, processes=processes):
            found.append((one.tokens.tolist(), one.labels.tolist(), one.weight, one.source))
    except (DataError, RuntimeError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    return found, account, error


def test_a_tokenizer_of_another_kind_is_the_same_in_another_process(tmp_path: Path):
    spm = preparation(write_spm_model(tmp_path / "spm.gguf", spm_metadata()))
    assert told(some(20), spm, 2) == told(some(20), spm, 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_result_is_that_of_one_process(how: Preparation, processes: int):
    alone = told(some(100), how, 1)
    assert told(some(100), how, processes) == alone
    assert [len(group) for group in (alone[1].skipped, alone[1].altered)] == [2, 1]  # so all kinds are compared


BAD = Example.chat(None, "a question", "an answer with \ue000 in it")
"""The template refuses it, see `refusing`."""


@pytest.fixture
def refusing(how: Preparation) -> Preparation:
    refusal = "{% if '\ue000' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}"
    return replace(how, template=replace(how.template, source=refusal + how.template.source))


@pytest.mark.parametrize("place", [0, 1, 20, 39])
def test_an_error_is_that_of_one_process_and_comes_in_its_turn(refusing: Preparation, place: int):
    examples = [*some(place), replace(BAD, source="d.jsonl:77"), *some(39 - place)]
    alone = told(examples, refusing, 1)
    assert alone[2].startswith("DataError: d.jsonl:77: The chat template")
    assert told(examples, refusing, 2) == alone


@pytest.mark.parametrize("place", [0, 2, 3, 20])
def test_an_error_of_the_data_comes_behind_what_was_before_it(how: Preparation, place: int):
    def broken() -> Iterator[Example]:
        yield from some(place)
        raise DataError("d.jsonl:21: this is not JSON; correct it.")

    alone = told(broken(), how, 1)
    assert alone[2].endswith("this is not JSON; correct it.")
    assert told(broken(), how, 2) == alone


def test_an_example_s_error_comes_before_a_later_one_of_the_data(refusing: Preparation):
    def broken() -> Iterator[Example]:
        yield from [*some(4), BAD, *some(4)]
        raise DataError("d.jsonl:21: this is not JSON; correct it.")

    alone = told(broken(), refusing, 1)
    assert alone[2].startswith("DataError: example 5: The chat template")
    assert told(broken(), refusing, 2) == alone


def test_none_to_train_is_told_as_by_one_process(how: Preparation):
    for examples in ([], [replace(one, weight=0.0) for one in some(10)]):
        assert told(examples, how, 2) == told(examples, how, 1)


def test_a_bug_in_a_process_shows_where_it_is(how: Preparation):
    """As a bug of ours, with the traceback of the other process."""
    found, _, error = told(some(5), replace(how, max_length="forty"), 2)  # type: ignore[arg-type]
    assert found == []
    assert error.startswith("RuntimeError: Traceback")
    assert "in prepare_one" in error


def test_progress_counts_every_example(how: Preparation):
    for processes in (1, 2):
        seen: list[int] = []
        list(encode_all(some(20), how, Account(), processes=processes, on_done=seen.append))
        assert seen == list(range(1, 21))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are started."""
    found: list[Any] = []

    def start(name: str) -> Any:
        found.append(start_module(name))
        return found[-1]

    monkeypatch.setattr("gguflora.data.encoding_process.start_module", start)
    return found


def test_no_process_and_no_thread_outlives_the_work(how: Preparation, refusing: Preparation, started: list[Any]):
    """Whether it is done, given up in the middle, or fails."""
    threads = threading.active_count()
    list(encode_all(some(20), how, Account(), processes=2))
    given_up = encode_all(some(20), how, Account(), processes=2)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert told([*some(5), BAD], refusing, 2)[2]
    assert len(started) == 6
    assert all(process.returncode is not None for process in started)
    assert threading.active_count() == threads


def test_a_process_that_is_killed_is_told(how: Preparation, started: list[Any]):
    with pytest.raises(MachineError, match=r"A process that encodes examples ended \(status -9\)"):
        for _ in encode_all(some(200), how, Account(), processes=2):
            started[0].kill()


def test_a_process_that_cannot_be_started_is_told(how: Preparation, monkeypatch: pytest.MonkeyPatch):
    def none_left(name: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable", name)

    monkeypatch.setattr("gguflora.data.encoding_process.start_module", none_left)
    with pytest.raises(MachineError, match=r"none could be started \(Resource temporarily unavailable\)"):
        list(encode_all(some(9), how, Account(), processes=2))


def test_a_process_ends_with_the_one_that_asks_it():
    """However that ends: its input does too."""
    process = start_module("gguflora.data.encoding_worker")
    process.communicate(b"\x80\x04N.", timeout=30)  # a pickle of None
    assert process.returncode == 0
