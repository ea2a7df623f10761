"""CSV and TSV: cells come as they were written, and each row that can't be used is named by its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguflora.data import csv_records, lines, load_csv
from gguflora.data.csv_records import read_csv_records, typed
from gguflora.data.example import Example
from gguflora.errors import DataError


def records(data: bytes, separator: str = ",") -> list[tuple[str, Any]]:
    return list(read_csv_records(io.BytesIO(data), "d.csv", separator))


def rows(data: bytes) -> list[dict[str, object]]:
    """Records as they are used; the first that can't be is raised."""
    made = []
    for place, value in records(data):
        if isinstance(value, DataError):
            raise value
        made.append(typed(value, place))
    return made


READ = {
    "plain": (b"prompt,completion\na,b\nc,d\n", [("d.csv:2", "a", "b"), ("d.csv:3", "c", "d")]),
    "no last line end": (b"prompt,completion\na,b", [("d.csv:2", "a", "b")]),
    "crlf and bom": (b"\xef\xbb\xbfprompt,completion\r\na,b\r\n", [("d.csv:2", "a", "b")]),
    "blank lines": (b"\nprompt,completion\n\n\na,b\n\n", [("d.csv:5", "a", "b")]),
    "a separator in quotes": (b'prompt,completion\n"a,b",c\n', [("d.csv:2", "a,b", "c")]),
    "doubled quotes": (b'prompt,completion\n"say ""hi""",c\n', [("d.csv:2", 'say "hi"', "c")]),
    "a quote inside": (b'prompt,completion\n5" disk,c\n', [("d.csv:2", '5" disk', "c")]),
    "lines in quotes": (
        b'prompt,completion\n"a\r\n\n\nb",c\nd,e\n',
        [("d.csv:2", "a\r\n\n\nb", "c"), ("d.csv:6", "d", "e")],
    ),
    "spaces stay": (b"prompt,completion\n a , b\n", [("d.csv:2", " a ", " b")]),
    "empty cells": (b"prompt,completion\n,\n", [("d.csv:2", "", "")]),
    "unicode line ends": ("prompt,completion\na\u2028\x85,😀\n".encode(), [("d.csv:2", "a\u2028\x85", "😀")]),
    "NUL": (b"prompt,completion\na,\0\n", [("d.csv:2", "a", "\0")]),
}


@pytest.mark.parametrize("case", READ)
def test_rows_are_read_as_they_were_written(case: str):
    data, expected = READ[case]
    assert records(data) == [(place, {"prompt": one, "completion": two}) for place, one, two in expected]


def test_tabs_separate_a_tsv_and_commas_are_text(tmp_path: Path):
    path = tmp_path / "d.tsv"
    path.write_bytes(b'user\tassistant\nHello, you\tHi\n"a\tb"\tc\n')
    assert load_csv(path) == [Example.chat(None, "Hello, you", "Hi"), Example.chat(None, "a\tb", "c")]


def test_weights_are_numbers_and_empty_optional_cells_are_absent():
    [first, second] = rows(b"instruction,input,output,weight\na,,b,\nc,d,e,0.5\n")
    assert first == {"instruction": "a", "output": "b"}
    assert second == {"instruction": "c", "input": "d", "output": "e", "weight": 0.5}


def test_messages_are_json(tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_text(
        "id,messages\n"
        '7,"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""Hello""}]"\n'
    )
    assert load_csv(path) == [Example.chat(None, "Hi", "Hello")]


BAD = {
    "too few cells": (
        b"prompt,completion\na,b\nc\n",
        "d.csv:3: the row has 1 cells and the first row names 2 columns; put a cell that holds a separator in quotes.",
    ),
    "too many cells": (
        b"prompt,completion\na,b,c\n",
        "d.csv:2: the row has 3 cells and the first row names 2 columns; put a cell that holds a separator in quotes.",
    ),
    "a column twice": (
        b"prompt,prompt\na,b\n",
        "d.csv:1: the column 'prompt' stands twice in the first row; give each a name of its own.",
    ),
    "semicolons": (
        b"prompt;completion\na;b\n",
        "d.csv:1: the columns seem to be separated by semicolons; save the file with commas "
        "(.csv has commas, .tsv has tabs).",
    ),
    "tabs": (
        b"prompt\tcompletion\na\tb\n",
        "d.csv:1: the columns seem to be separated by tabs; save the file with commas "
        "(.csv has commas, .tsv has tabs).",
    ),
    "text behind a quote": (
        b'prompt,completion\n"a"b,c\n',
        "d.csv:2: the row's quotes or line ends are wrong (',' expected after '\"'); "
        'put a cell that holds a quote in quotes, and write the quote twice ("").',
    ),
    "a quote that nothing closes": (
        b'prompt,completion\na,b\n"c,d\ne,f\n',
        "d.csv:3: the row's quotes or line ends are wrong (unexpected end of data); "
        'put a cell that holds a quote in quotes, and write the quote twice ("").',
    ),
    "latin-1": (
        b"prompt,completion\na,caf\xe9\n",
        "d.csv:2: byte 6 of the line (0xe9) is not UTF-8; save the file as UTF-8.",
    ),
    "utf-16": ("prompt,completion\n".encode("utf-16"), "d.csv:1: the file looks like UTF-16; save it as UTF-8."),
    "weight": (
        b"prompt,completion,weight\na,b,much\n",
        "d.csv:2: the weight is 'much'; it must be a number from 0 upwards.",
    ),
    "messages": (
        b"messages\nHi\n",
        "d.csv:2: the cell of messages is not JSON (Expecting value: line 1 column 1 (char 0)); "
        "write an array of objects.",
    ),
    "deep messages": (
        b"messages\n" + b"[" * 65 + b"]" * 65 + b"\n",
        "d.csv:2: the cell of messages is nested deeper than 64 levels; flatten it.",
    ),
    "too many columns": (
        b",".join(b"%d" % n for n in range(5000)) + b"\n",
        "d.csv:1: the file has 5000 columns; at most 4096 are read.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_read_is_said_with_its_line(case: str):
    data, message = BAD[case]
    with pytest.raises(DataError) as refused:
        rows(data)
    assert str(refused.value) == message


def test_line_ends_of_old_macs_are_refused():
    with pytest.raises(DataError, match=r"^d\.csv:1: the row's quotes or line ends are wrong \(new-line character"):
        records(b"prompt,completion\ra,b\r")


@pytest.mark.parametrize("data", [b"", b"\n\r\n", b"prompt,completion\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_row_is_refused(data: bytes, tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"d\.csv holds no record; it needs at least one\.$"):
        load_csv(path)


def test_a_row_may_be_as_long_as_the_limit_and_a_quote_can_not_take_in_the_file(monkeypatch: pytest.MonkeyPatch):
    for module in (lines, csv_records):
        monkeypatch.setattr(module, "MAX_LINE", 1000)
    long = b"prompt,completion\n" + b'"' + b"a\n" * 400 + b'",b\n'
    assert len(records(long)) == 1
    unclosed = b'prompt,completion\n"' + b"a\n" * 600
    with pytest.raises(
        DataError, match=r"^d.csv:2: the row is longer than 1000 bytes; close its quotes, or shorten it\.$"
    ):
        records(unclosed)
    with pytest.raises(DataError, match=r"^d.csv:2: the line is longer than 1000 bytes; a record must fit in that\.$"):
        records(b"prompt,completion\n" + b"a" * 1001 + b",b\n")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"))


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(",\t"))
@settings(deadline=None)
def test_what_pythons_csv_writes_is_read_back(rows: list[tuple[str, str]], separator: str):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerows([("prompt", "completion"), *rows])
    read = [(value["prompt"], value["completion"]) for _, value in records(text.getvalue().encode(), separator)]
    assert read == rows


@given(st.binary(max_size=200) | st.text(alphabet='a,"\n\r\t;', max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_give_examples_or_a_data_error(tmp_path: Path, data: bytes):
    path = tmp_path / "d.csv"
    path.write_bytes(b"prompt,completion\n" + data)
    try:
        assert load_csv(path)
    except DataError as error:
        assert str(path) in str(error)
