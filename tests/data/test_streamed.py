"""Large files are read anew each time, everything else once; what comes out is the same."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from gguflora.config import ReadConfig
from gguflora.data import StreamedExamples, load_examples, open_examples
from gguflora.errors import DataError

GOOD = {"prompt": "a", "completion": "b"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"prompt": str(number)}) + "\n" for number in range(5)))
    return path


@pytest.fixture
def all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.data.streamed.LARGE", 1)


def test_small_files_become_a_list_and_a_bad_one_is_told_at_once(path: Path):
    assert open_examples(path) == load_examples(path)
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"d\.jsonl:1"):
        open_examples([path])


@pytest.mark.usefixtures("all_is_large")
def test_large_files_can_be_gone_through_again_and_again(path: Path):
    streamed = open_examples([path, str(path)])
    assert isinstance(streamed, StreamedExamples)
    assert list(streamed) == list(streamed) == load_examples([path, path])


def test_the_limit_is_of_all_files_together(path: Path, monkeypatch: pytest.MonkeyPatch):
    size = path.stat().st_size
    monkeypatch.setattr("gguflora.data.streamed.LARGE", 2 * size)
    assert isinstance(open_examples([path]), list)
    assert isinstance(open_examples([path, path]), StreamedExamples)
    monkeypatch.setattr("gguflora.data.streamed.LARGE", 2 * size + 1)
    assert isinstance(open_examples([path, path]), list)


@pytest.mark.usefixtures("all_is_large")
def test_what_can_be_read_but_once_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch):
    class Bytes:
        buffer = io.BytesIO(path.read_bytes())

    monkeypatch.setattr("sys.stdin", Bytes)
    monkeypatch.chdir(path.parent)
    (path.parent / "-").write_text("a file of that name is not what is meant")
    assert open_examples("-") == load_examples(path)

    pipe = path.with_name("pipe.jsonl")
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    assert open_examples(pipe) == load_examples(path)
    writer.join()


@pytest.mark.usefixtures("all_is_large")
def test_a_bad_record_is_told_once_however_often_it_is_met(path: Path):
    path.write_text(path.read_text() + "{}\n")
    told: list[str] = []
    streamed = open_examples([path], ReadConfig(on_bad_record="skip"), told.append)
    assert isinstance(streamed, StreamedExamples)
    assert len(list(streamed)) == len(list(streamed)) == 5
    assert len(told) == 1
    assert f"{path}:6" in told[0]


@pytest.mark.usefixtures("all_is_large")
def test_each_bad_record_is_told_once_also_where_a_reading_was_broken_off_and_nothing_of_them_is_held(path: Path):
    path.write_text('{"prompt": "a", "completion": "b"}\n[]\n' * 4)
    told: list[str] = []
    streamed = open_examples([path], ReadConfig(on_bad_record="skip"), told.append)
    assert isinstance(streamed, StreamedExamples)
    reading = iter(streamed)
    for _ in range(3):
        next(reading)
    assert len(told) == 2
    assert len(list(streamed)) == len(list(reading)) + 3 == 4
    assert [sentence.partition(": ")[0] for sentence in told] == [f"{path}:{line}" for line in (2, 4, 6, 8)]


@pytest.mark.usefixtures("all_is_large")
def test_a_bad_record_of_a_large_file_stops_it_unless_it_may_be_skipped(path: Path):
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"d\.jsonl:6"):
        list(open_examples([path]))
