"""The same examples come out of every format; a million of them, and lines without end, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguflora.data import Completion, load_examples
from gguflora.data.example import Example, Message
from gguflora.data.records import write_record
from gguflora.errors import DataError
from tests.data.compressed import COMPRESS
from tests.data.saved_dataset import saved

MIB = 2**20
COUNT = 1_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
weights = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
completions = st.builds(Example.completion, texts, texts, weight=weights)
conversations = st.builds(Example.messages, st.lists(messages, min_size=1, max_size=4), weight=weights)


def records(examples: list[Example]) -> list[dict[str, Any]]:
    return [write_record(example) for example in examples]


def jsonl(path: Path, examples: list[Example]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records(examples)))


def array(path: Path, examples: list[Example]) -> None:
    path.write_text(json.dumps(records(examples), indent=1))


def separated(separator: str) -> Callable[[Path, list[Example]], None]:
    def write(path: Path, examples: list[Example]) -> None:
        rows = records(examples)
        names = sorted({key for row in rows for key in row})
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
            writer.writerow(names)
            for row in rows:
                cells = [row.get(name, "") for name in names]
                writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])

    return write


def columns(examples: list[Example]) -> dict[str, Any]:
    rows = records(examples)
    types = {
        "prompt": pa.string(),
        "completion": pa.large_string(),
        "weight": pa.float64(),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return {name: pa.array([row.get(name) for row in rows], type_) for name, type_ in types.items()}


WRITE: dict[str, Callable[[Path, list[Example]], Any]] = {
    "d.jsonl": jsonl,
    "d.json": array,
    "d.csv": separated(","),
    "d.tsv": separated("\t"),
    "d.parquet": lambda path, examples: pq.write_table(pa.table(columns(examples)), path, row_group_size=2),
    "d": lambda path, examples: saved(path, columns(examples), parts=2),
}
MIXED = ("d.jsonl", "d.json", "d.parquet", "d")  # a row of a CSV has a cell in every column, so it has one shape


@pytest.mark.parametrize("name", WRITE)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_in_a_format_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
):
    shapes = [completions | conversations] if name in MIXED else [completions, conversations]
    written = data.draw(st.sampled_from(shapes).flatmap(lambda shape: st.lists(shape, min_size=1, max_size=4)))
    path = tmp_path_factory.mktemp("format") / name
    WRITE[name](path, written)
    assert load_examples([path]) == written
    if path.suffix in (".jsonl", ".csv"):
        for suffix, compress in COMPRESS.items():
            packed = path.with_name(path.name + suffix)
            packed.write_bytes(compress(path.read_bytes()))
            assert load_examples([packed]) == written


@given(st.lists(texts.filter(str.strip), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_documents_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, documents: list[str]):
    folder = tmp_path_factory.mktemp("texts")
    for number, document in enumerate(documents):
        (folder / f"{number}.txt").write_bytes(document.removeprefix("\ufeff").encode())
    expected = [document.removeprefix("\ufeff") for document in documents]
    if any(text.startswith("\ufeff") or not text.strip() or "\0" in text[:2] for text in expected):
        return  # a second mark would be taken for the first; NUL at the start looks like UTF-16
    assert [example.content for example in load_examples([folder])] == [Completion("", text) for text in expected]


def test_all_formats_of_a_folder_are_read_together(tmp_path: Path):
    example = Example.completion("a", "b")
    for name, write in WRITE.items():
        if name != "d":
            write(tmp_path / name, [example])
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"user": "a", "assistant": "b"}'))
    assert load_examples([tmp_path]) == [*[example] * 5, Example.chat(None, "a", "b")]


# --- without end ---


def endless(path: Path, beginning: bytes, filler: bytes) -> None:
    """What a program writes into a pipe that never ends a line."""
    with path.open("wb", buffering=0) as file:
        try:
            file.write(beginning)
            while True:
                file.write(filler * 2**16)
        except BrokenPipeError:
            return


ENDLESS = {
    "d.jsonl": (b'{"prompt": "', r":1: the line is longer than 16777216 bytes; a record must fit in that\."),
    "d.csv": (b'prompt,completion\n"', r":2: the line is longer than 16777216 bytes; a record must fit in that\."),
    "d.txt": (b"Once ", r" is longer than 268435456 bytes; split it into several files\."),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_line_without_end_is_refused_in_bounded_memory(name: str, tmp_path: Path):
    beginning, message = ENDLESS[name]
    path = tmp_path / name
    os.mkfifo(path)
    writer = threading.Thread(target=endless, args=(path, beginning, b"a"))
    writer.start()
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(DataError, match=message):
        load_examples([path])
    seconds, peak = time.monotonic() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writer.join(timeout=10)
    assert not writer.is_alive()
    assert seconds < 10
    assert peak < (64 * MIB if name != "d.txt" else 600 * MIB)  # the document's blocks, and once more joined


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_a_line_of_a_gib_is_not_held(name: str, tmp_path: Path):
    """A sparse file: 1 GiB of NUL that takes no room on the disk."""
    beginning, message = ENDLESS[name]
    path = tmp_path / name
    path.write_bytes(beginning)
    os.truncate(path, 2**30)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        load_examples([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * MIB


READER = """
import collections, json, re, sys, time
from pathlib import Path
from gguflora.data import iterate_examples

def held():  # bytes; pages of mapped files, which a process can lose at any time, are not counted
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

kept = collections.deque(maxlen=int(sys.argv[2]))
next(iterate_examples([sys.argv[1]]))  # what is imported, and buffers
before, most, began = held(), 0, time.monotonic()
for seen, example in enumerate(iterate_examples([sys.argv[1]]), 1):
    kept.append(example)
    if seen % 20_000 == 0:
        most = max(most, held() - before)
last = [example.content.prompt, example.content.completion]
print(json.dumps({"seen": seen, "last": last, "grew": most, "seconds": time.monotonic() - began}))
"""


def read_apart(path: Path, keep: int) -> dict[str, Any]:
    """What a fresh process tells that iterates over a file and keeps so many examples."""
    command = [sys.executable, "-c", READER, str(path), str(keep)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet", "d", "d.jsonl.gz"])
def test_a_million_records_take_no_more_memory_than_a_few(name: str, tmp_path: Path):
    path = tmp_path / name
    write_many(path, COUNT)
    told = read_apart(path, keep=1)
    size, rate = path_bytes(path) / MIB, COUNT / told["seconds"]
    print(f"\n{name}: {size:.0f} MiB, memory grew by {told['grew'] / MIB:.1f} MiB, {rate:.0f} records/s")
    assert told["seen"] == COUNT
    assert told["last"] == [f"What is {COUNT - 1} + 1?", str(COUNT) * 10]
    assert told["grew"] < 64 * MIB
    if name == "d.jsonl":  # so that this test can see it
        assert read_apart(path, keep=COUNT)["grew"] > 256 * MIB


def write_many(path: Path, count: int) -> None:
    prompts, answers = (f"What is {n} + 1?" for n in range(count)), (str(n + 1) * 10 for n in range(count))
    if path.suffix in (".parquet", ""):
        table = {"prompt": list(prompts), "completion": list(answers)}
        if path.suffix:
            pq.write_table(pa.table(table), path)
        else:
            saved(path, table, parts=2)
        return
    line = "{},{}\n" if path.suffix == ".csv" else '{{"prompt": "{}", "completion": "{}"}}\n'
    open_ = gzip.open if path.suffix == ".gz" else open
    with open_(path, "wb") as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:  # type: ignore[arg-type]
        if path.suffix == ".csv":
            file.write("prompt,completion\n")
        file.writelines(line.format(*pair) for pair in zip(prompts, answers, strict=True))


def path_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path.iterdir() if path.is_dir() else [path]))
