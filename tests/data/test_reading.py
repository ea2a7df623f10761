"""Reading with options: other names of keys, weights of sources, bad records left out; and one example at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguflora.config import ReadConfig
from gguflora.data import iterate_examples, load_examples
from gguflora.data.example import Example
from gguflora.errors import DataError, UsageError


def written(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


GOOD = {"prompt": "a", "completion": "b"}
EXAMPLE = Example.completion("a", "b")


# --- other names ---


def test_columns_give_records_the_keys_that_we_know(tmp_path: Path):
    asked = written(tmp_path / "a.jsonl", {"question": "a", "answer": "b", "prompt": "an old one"}, GOOD)
    table = tmp_path / "b.csv"
    table.write_text("question,answer,score\na,b,0.5\n")
    reading = ReadConfig(column=("prompt=question", "completion=answer", "weight=score"))
    assert load_examples([asked, table], reading) == [EXAMPLE, EXAMPLE, Example.completion("a", "b", weight=0.5)]


def test_columns_can_be_exchanged_and_may_have_an_equals_sign_in_them(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", {"prompt": "b", "completion": "a"})
    assert load_examples([path], ReadConfig(column=("prompt=completion", "completion=prompt"))) == [EXAMPLE]
    path = written(tmp_path / "d.jsonl", {"a=b": "Once."})
    assert load_examples([path], ReadConfig(column=("text=a=b",))) == [Example.completion("", "Once.")]


def test_conversations_in_messages_style_are_read_by_naming_them(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = written(tmp_path / "d.jsonl", {"conversations": turns})
    reading = ReadConfig(column=("messages=conversations",))
    assert load_examples([path], reading) == [Example.chat(None, "Hi", "Hello")]


def test_a_misspelt_column_does_not_get_lost(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", {"instruction": "a", "context": "c", "output": "b"})
    with pytest.raises(UsageError) as refused:
        load_examples([path], ReadConfig(column=("input=contxt",)))
    assert str(refused.value) == "--column input=contxt: no record has a 'contxt'; correct the name."
    with pytest.raises(DataError, match=r"d\.jsonl:1: the record's keys are 'context', 'output', 'prompt'; write it"):
        load_examples([path], ReadConfig(column=("completion=outptu", "prompt=instruction")))
    with pytest.raises(UsageError) as refused:
        load_examples([path], ReadConfig(column=("promt=instruction",)))
    assert str(refused.value) == (
        "--column promt=instruction: no example has a 'promt'; give one of assistant, chosen, completion, "
        "conversations, input, instruction, messages, output, preferred_output, prompt, rejected, system, text, tools, "
        "user, weight."
    )


# --- weights of sources ---


def test_source_weights_multiply_those_of_the_examples(tmp_path: Path):
    one = written(tmp_path / "one.jsonl", GOOD, GOOD | {"weight": 4})
    two = written(tmp_path / "two=0.1.jsonl", GOOD)
    reading = ReadConfig(source_weight=(f"{one}=0.5", f"{two}=0"))
    assert [example.weight for example in load_examples([one, two, one], reading)] == [0.5, 2.0, 0.0, 0.5, 2.0]


def test_a_folder_or_pattern_has_a_weight_and_a_file_in_it_one_of_its_own(tmp_path: Path):
    for name in "abc":
        written(tmp_path / f"{name}.jsonl", GOOD)
    for given in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        reading = ReadConfig(source_weight=(f"{given}=0.5", f"{tmp_path}/b.jsonl=2"))
        assert [example.weight for example in load_examples([given], reading)] == [0.5, 2.0, 0.5]


def test_a_weight_for_what_is_not_read_and_one_beyond_all_numbers_are_refused(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", GOOD | {"weight": 1e200})
    with pytest.raises(UsageError) as refused:
        load_examples([path], ReadConfig(source_weight=("d.jsonl=0.5",)))
    assert str(refused.value) == (
        "--source-weight d.jsonl=...: no source is called that; write it as the data are named."
    )
    with pytest.raises(DataError) as lost:
        load_examples([path], ReadConfig(source_weight=(f"{path}=1e200",)))
    assert str(lost.value) == f"{path}:1: the weight 1e+200 times 1e+200 is no finite number; lower one."


# --- bad records ---

BAD_LINES: dict[str, tuple[object, ...]] = {
    "d.jsonl": ('{"prompt"', "7", {"prompt": 1, "completion": "b"}, {"x": 1}, '{"a": ' + "[" * 70 + "]" * 70 + "}"),
    "d.csv": ("c", "d,e,f"),
}


def test_bad_records_are_left_out_each_told_with_its_place(tmp_path: Path):
    lines = written(tmp_path / "d.jsonl", GOOD, *BAD_LINES["d.jsonl"], GOOD)
    rows = written(tmp_path / "d.csv", "prompt,completion", "a,b", *BAD_LINES["d.csv"], "a,b")
    told: list[str] = []
    loaded = load_examples([lines, rows], ReadConfig(on_bad_record="skip"), told.append)
    assert loaded == [EXAMPLE] * 4
    places = [f"{lines}:{n}" for n in range(2, 7)] + [f"{rows}:{n}" for n in (3, 4)]
    assert [sentence.startswith(place) for sentence, place in zip(told, places, strict=True)] == [True] * 7
    assert all(sentence.endswith(".") for sentence in told)


def test_by_default_the_first_bad_record_is_an_error(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", GOOD, *BAD_LINES["d.jsonl"])
    examples = iterate_examples([path])
    assert next(examples) == EXAMPLE
    with pytest.raises(DataError, match=r"d\.jsonl:2:10: this is not JSON"):
        next(examples)


def test_nothing_but_bad_records_is_an_error_and_so_is_a_file_that_can_not_be_read_on(tmp_path: Path):
    skip = ReadConfig(on_bad_record="skip")
    path = written(tmp_path / "d.jsonl", "7", "8")
    with pytest.raises(DataError) as refused:
        load_examples([path], skip)
    assert str(refused.value) == (
        f"No record can be used; the first: {path}:1: the record is a number; it must be a JSON object."
    )
    quotes = written(tmp_path / "d.csv", "prompt,completion", "a,b", '"a"b,c')
    array = written(tmp_path / "d.json", '[{"prompt": "a", "completion": "b"}, {]')
    for name in (quotes, array, tmp_path / "absent.jsonl"):
        with pytest.raises(DataError, match=r"d\.csv:3|d\.json:1:39|absent\.jsonl can't be read"):
            load_examples([path, name, path], skip)


# --- one at a time ---


def test_standard_input_is_read_as_jsonl(monkeypatch: pytest.MonkeyPatch):
    class Standard:
        buffer = io.BytesIO(b'{"prompt": "a", "completion": "b"}\n7\n')

    monkeypatch.setattr("sys.stdin", Standard)
    examples = iterate_examples(["-"])
    assert next(examples).source == "standard input:1"
    with pytest.raises(DataError, match=r"^standard input:2: the record is a number"):
        next(examples)
    with pytest.raises(DataError, match=r"^standard input holds no record; it needs at least one\.$"):
        load_examples(["-"])


def test_an_example_is_there_before_the_next_line_is_read(monkeypatch: pytest.MonkeyPatch):
    """A pipe that stays open: whoever reads ahead would wait for ever."""

    class Pipe(io.RawIOBase):
        def __init__(self, lines: Iterator[bytes]) -> None:
            self.lines = lines

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            line = next(self.lines)
            buffer[: len(line)] = line
            return len(line)

    def lines() -> Iterator[bytes]:
        yield b'{"prompt": "a", "completion": "b"}\n'
        yield b'{"prompt": "a", "completion": "b"}\n'
        pytest.fail("read ahead")

    class Standard:
        buffer = io.BufferedReader(Pipe(lines()))

    monkeypatch.setattr("sys.stdin", Standard)
    examples = iterate_examples(["-"])
    assert [next(examples), next(examples)] == [EXAMPLE, EXAMPLE]


def test_one_path_need_not_be_in_a_list(tmp_path: Path):
    path = written(tmp_path / "d.jsonl", GOOD)
    assert load_examples(path) == load_examples(str(path)) == [EXAMPLE]


def test_a_file_is_closed_when_whoever_iterates_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path / "d.jsonl", GOOD, GOOD)
    opened: list[io.BufferedReader] = []
    original = Path.open

    def noted(self: Path, mode: str = "r") -> io.BufferedReader:
        opened.append(original(self, mode))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(Path, "open", noted)
    examples = iterate_examples([path])
    next(examples)
    assert not opened[0].closed
    examples.close()  # type: ignore[attr-defined]
    assert opened[0].closed
