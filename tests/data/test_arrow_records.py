"""Parquet files and saved datasets: rows are records, read a few at a time, and damage and bombs are refused."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguflora.data import arrow_records, iterate_examples, load_examples, load_parquet
from gguflora.data.example import Example
from gguflora.errors import DataError, UsageError
from tests.data.saved_dataset import saved

MIB = 2**20
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROWS = {"prompt": ["a", "c", "e"], "completion": ["b", "d", "f"]}
EXAMPLES = [Example.completion("a", "b"), Example.completion("c", "d"), Example.completion("e", "f")]


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_rows_are_records_named_by_their_number(tmp_path: Path):
    path = parquet(tmp_path / "d.parquet", ROWS, row_group_size=2)
    assert load_parquet(path) == load_examples([path]) == EXAMPLES
    assert [example.source for example in load_parquet(path)] == [f"{path} row {n}" for n in (1, 2, 3)]


def test_a_saved_dataset_is_read_in_the_order_that_it_states(tmp_path: Path):
    folder = saved(tmp_path / "d", ROWS, parts=2)
    assert load_parquet(folder) == load_examples([folder]) == EXAMPLES
    assert [example.source for example in load_parquet(folder)] == [f"{folder} row {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("write", [parquet, saved], ids=["parquet", "saved"])
def test_one_table_may_hold_several_shapes_and_columns_that_mean_nothing(write: Any, tmp_path: Path):
    columns = {
        "id": [1, 2, 3],
        "picture": [b"\xff" * 10] * 3,
        "messages": [CHAT, None, None],
        "prompt": [None, "a", None],
        "completion": [None, "b", None],
        "text": [None, None, "Once."],
        "weight": [None, 0.5, None],
        "tools": pa.array([None] * 3, pa.list_(pa.string())),
    }
    assert load_parquet(write(tmp_path / "d", columns)) == [
        Example.chat(None, "Hi", "Hello"),
        Example.completion("a", "b", weight=0.5),
        Example.completion("", "Once."),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a", "b"], "completion": ["c", None]}, " row 2: the record's keys are 'prompt'; write it with"),
        ({"prompt": ["a"], "completion": [5]}, " row 1: the completion is of type int; it must be text."),
        ({"prompt": [b"a"], "completion": ["b"]}, " row 1: the prompt is of type bytes; it must be text."),
        ({"messages": [CHAT], "tools": [["f"]]}, " row 1: a tool must be an object of type function"),
        ({"text": ["a"], "tools": [["f"]]}, " row 1: 'tools' can't be trained and must not get lost unseen;"),
        ({"text": ["a"], "thinking": ["f"]}, " row 1: 'thinking' can't be trained and must not get lost unseen;"),
        ({"messages": ["Hi"]}, " row 1: 'messages' is text; it must be an array of objects with role and content."),
        (
            {"question": ["a"], "answer": ["b"]},
            " has the columns 'question', 'answer', and none that an example is made of; name yours by --column.",
        ),
        ({"prompt": pa.array([], pa.string())}, " holds no record; it needs at least one."),
    ],
)
@pytest.mark.parametrize("write", [parquet, saved], ids=["parquet", "saved"])
def test_rows_that_can_not_be_used_are_said(write: Any, columns: dict[str, Any], message: str, tmp_path: Path):
    path = write(tmp_path / "d", columns)
    with pytest.raises(DataError) as refused:
        load_parquet(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("write", [parquet, saved], ids=["parquet", "saved"])
def test_columns_are_told_apart_by_their_whole_names(write: Any, tmp_path: Path):
    """pyarrow takes `prompt.old` for a part of `prompt`."""
    columns = {"prompt.old": ["x"], "prompt": ["a"], "completion.old": ["y"], "completion": ["b"]}
    assert load_parquet(write(tmp_path / "d", columns)) == [Example.completion("a", "b")]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "prompt", "completion"]), path)
    with pytest.raises(DataError) as refused:
        load_parquet(path)
    assert str(refused.value) == f"{path} has two columns 'prompt'; give each a name of its own."


def test_damaged_files_are_refused(tmp_path: Path):
    whole = parquet(tmp_path / "whole.parquet", ROWS).read_bytes()
    path = tmp_path / "d.parquet"
    for data in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"PAR1" * 100, b'{"prompt": "a"}'):
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"^{path} can't be read \(.+\); get it again\.$"):
            load_parquet(path)


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_gives_examples_or_a_data_error(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "d.parquet"
    changed = bytearray(parquet(path, ROWS).read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        load_parquet(path)
    except DataError as error:
        assert str(path) in str(error)


def test_what_a_file_declares_is_checked_before_its_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("rows were read"))
    texts = [str(n) * 1000 for n in range(1000)]
    path = parquet(tmp_path / "d.parquet", {"text": texts}, compression="zstd", use_dictionary=False)
    size = path.stat().st_size
    monkeypatch.setattr(arrow_records, "GRACE", 0)
    monkeypatch.setattr(arrow_records, "MAX_EXPANSION", 10)
    with pytest.raises(
        DataError, match=rf" declares 2\d+ bytes in a file of {size}, more than 10 times as much; it is"
    ):
        load_parquet(path)
    monkeypatch.setattr(arrow_records, "MAX_ROW_GROUP", MIB)
    with pytest.raises(DataError, match=r" has a row group of 2\d+ bytes; write it with groups below 1048576\.$"):
        load_parquet(path)
    monkeypatch.setattr(arrow_records, "MAX_COLUMNS", 1)
    with pytest.raises(DataError, match=r" has 2 columns; at most 1 are read\.$"):
        load_parquet(parquet(path, ROWS))


def test_a_text_that_stands_in_many_rows_is_in_memory_once(tmp_path: Path):
    """4 MiB in 300 rows are 1.2 GiB, out of a file that holds, and declares, little more than 4 MiB."""
    long = pa.array([random.Random(0).randbytes(2 * MIB).hex()])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), long)
    path = parquet(tmp_path / "d.parquet", {"text": column}, compression="zstd")
    assert path.stat().st_size < 5 * MIB
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for _ in iterate_examples([path]):
        rows += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 300
    assert most < 128 * MIB  # MAX_BATCH, and a few pages


STATES = {
    "no JSON": "{",
    "an array": "[]",
    "no files": "{}",
    "files without names": '{"_data_files": [{}]}',
    "NaN": '{"_data_files": [], "x": NaN}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", STATES)
def test_a_damaged_state_is_refused(case: str, tmp_path: Path):
    folder = saved(tmp_path / "d", ROWS)
    (folder / "state.json").write_text(STATES[case])
    with pytest.raises(DataError) as refused:
        load_parquet(folder)
    assert str(refused.value) == (
        f"{folder}/state.json is not what `datasets` saves; save the dataset again with save_to_disk."
    )


@pytest.mark.parametrize("name", ["../d.arrow", "/etc/passwd", "x/d.arrow", "d.txt", 5])
def test_a_state_can_not_name_files_elsewhere(name: object, tmp_path: Path):
    folder = saved(tmp_path / "d", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="which is no Arrow file in its folder; save the dataset again"):
        load_parquet(folder)


def test_damaged_and_missing_arrow_files_are_refused(tmp_path: Path):
    folder = saved(tmp_path / "d", ROWS)
    [path] = folder.glob("*.arrow")
    whole = path.read_bytes()
    for data in (b"", b"ARROW1", whole[: len(whole) // 2], b"\xff" * 1000):
        path.write_bytes(data)
        with pytest.raises(
            DataError, match=rf"^{folder} (can't be read \(.+\); get it again|holds no record; it needs)"
        ):
            load_parquet(folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"^{folder} can't be read \(.*No such file.*\); get it again\.$"):
        load_parquet(folder)


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_of_an_arrow_file_gives_examples_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """Offsets that point out of their buffer would be read as memory of the process."""
    folder = saved(tmp_path_factory.mktemp("saved") / "d", ROWS)
    [path] = folder.glob("*.arrow")
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        load_parquet(folder)
    except DataError as error:
        assert str(folder) in str(error)


def test_without_pyarrow_the_command_that_installs_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, folder = parquet(tmp_path / "d.parquet", ROWS), saved(tmp_path / "d", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for named in (path, folder):
        with pytest.raises(UsageError) as refused:
            load_parquet(named)
        assert str(refused.value) == "Parquet and Arrow files need pyarrow: pip install 'gguflora[parquet]'."
