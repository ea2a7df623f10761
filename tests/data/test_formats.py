"""Dataset files: every known shape loads, what was saved loads back equal, each bad record is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguflora.data import json_records, lines, load_conversations, load_text, text_records
from gguflora.data.example import Example, Message
from gguflora.data.formats import dataset_hash, load_alpaca, load_examples, load_jsonl, save_jsonl
from gguflora.errors import DataError

PARIS = Example.chat("Be brief", "Capital of France?", "Paris")

SHAPES = {
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "Capital of France?"},
                {"role": "assistant", "content": "Paris"},
            ]
        },
        PARIS,
    ),
    "sharegpt": (
        {
            "id": "7",
            "conversations": [
                {"from": "system", "value": "Be brief"},
                {"from": "human", "value": "Capital of France?"},
                {"from": "gpt", "value": "Paris"},
            ],
        },
        PARIS,
    ),
    "chat": ({"system": "Be brief", "user": "Capital of France?", "assistant": "Paris"}, PARIS),
    "chat without system": ({"user": "Hi", "assistant": "Hello"}, Example.chat(None, "Hi", "Hello")),
    "instruction": (
        {"instruction": "Translate", "input": "Hello", "output": "Hola"},
        Example.instruction("Translate", "Hello", "Hola"),
    ),
    "instruction without input": (
        {"instruction": "Say hello", "output": "Hello"},
        Example.instruction("Say hello", "", "Hello"),
    ),
    "instruction with null input": (
        {"instruction": "Say hello", "input": None, "output": "Hello"},
        Example.instruction("Say hello", "", "Hello"),
    ),
    "completion": ({"prompt": "def f():", "completion": "\n  pass"}, Example.completion("def f():", "\n  pass")),
    "weight": ({"prompt": "a", "completion": "b", "weight": 0.5}, Example.completion("a", "b", weight=0.5)),
    "weight 0": ({"prompt": "a", "completion": "b", "weight": 0}, Example.completion("a", "b", weight=0)),
    "null weight": ({"prompt": "a", "completion": "b", "weight": None}, Example.completion("a", "b")),
}

texts = st.text(st.characters(exclude_categories=["Cs"]))
weights = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
examples = st.one_of(
    st.builds(Example.completion, texts, texts, weight=weights),
    st.builds(Example.messages, st.lists(messages, min_size=1, max_size=5), weight=weights),
    st.builds(Example.chat, texts, texts, texts),
    st.builds(Example.instruction, texts, texts, texts),
)


def written(folder: Path, data: bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("as_array", [False, True], ids=["lines", "array"])
def test_each_shape_loads(shape: str, as_array: bool, tmp_path: Path):
    record, expected = SHAPES[shape]
    text = json.dumps([record], indent=1) if as_array else json.dumps(record)
    assert load_jsonl(written(tmp_path, text.encode())) == [expected]


def test_shapes_may_be_mixed_and_sources_name_file_and_line(tmp_path: Path):
    lines = [json.dumps(SHAPES["chat"][0]), "", "  ", json.dumps(SHAPES["completion"][0])]
    path = written(tmp_path, "\n".join(lines).encode())
    loaded = load_jsonl(path)
    assert loaded == [SHAPES["chat"][1], SHAPES["completion"][1]]
    assert [example.source for example in loaded] == [f"{path}:1", f"{path}:4"]


def test_sources_in_an_array_name_the_line_where_the_record_starts(tmp_path: Path):
    path = written(tmp_path, b'\n[\n{"prompt": "a",\n "completion": "b"},\n\n {"prompt": "c", "completion": "d"}]\n')
    assert [example.source for example in load_jsonl(path)] == [f"{path}:3", f"{path}:6"]


def test_alpaca_reads_arrays_and_lines_and_refuses_other_shapes(tmp_path: Path):
    record, expected = SHAPES["instruction"]
    assert load_alpaca(written(tmp_path, json.dumps([record] * 2).encode(), "a.json")) == [expected] * 2
    assert load_alpaca(written(tmp_path, json.dumps(record).encode(), "b.jsonl")) == [expected]
    other = written(tmp_path, json.dumps(SHAPES["completion"][0]).encode(), "c.jsonl")
    with pytest.raises(DataError, match=r"c.jsonl:1: the record's keys are 'prompt', 'completion'; .* instruction"):
        load_alpaca(other)


def test_conversations_are_read_as_sharegpt_has_them_and_other_shapes_refused(tmp_path: Path):
    record, expected = SHAPES["sharegpt"]
    assert load_conversations(written(tmp_path, json.dumps([record] * 2).encode(), "a.json")) == [expected] * 2
    assert load_conversations(written(tmp_path, json.dumps(record).encode(), "b.jsonl")) == [expected]
    other = written(tmp_path, json.dumps(SHAPES["messages"][0]).encode(), "c.jsonl")
    with pytest.raises(DataError) as refused:
        load_conversations(other)
    assert str(refused.value) == (
        f"{other}:1: the record's keys are 'messages'; write it with the keys of one of: conversations."
    )


def test_a_text_file_is_one_document_and_a_folder_one_for_each(tmp_path: Path):
    text = "\r\nOnce\tupon <|im_end|> \u2028 a time.\n\n"
    one = written(tmp_path, b"\xef\xbb\xbf" + text.encode(), "b.txt")
    written(tmp_path, b"# A title\n", "a.md")
    written(tmp_path, GOOD, "c.jsonl")
    assert load_text(one) == [Example.completion("", text)]
    loaded = load_text(tmp_path)
    assert loaded == [Example.completion("", "# A title\n"), Example.completion("", text)]
    assert [example.source for example in loaded] == [str(tmp_path / "a.md"), str(one)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", " holds no text; leave it out."),
        (b"\xef\xbb\xbf \r\n\t", " holds no text; leave it out."),
        (b"one\ncaf\xe9", ":2: byte 4 of the line (0xe9) is not UTF-8; save the file as UTF-8."),
        ("Once".encode("utf-16"), ":1: the file looks like UTF-16; save it as UTF-8."),
        (b"x" * 101, " is longer than 100 bytes; split it into several files."),
    ],
)
def test_a_text_file_that_can_not_be_used_is_said(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_records, "MAX_DOCUMENT", 100)
    path = written(tmp_path, data, "d.txt")
    with pytest.raises(DataError) as refused:
        load_text(path)
    assert str(refused.value) == f"{path}{message}"


def test_several_files_come_in_the_order_given(tmp_path: Path):
    first = written(tmp_path, b'{"prompt": "a", "completion": "1"}', "z.jsonl")
    second = written(tmp_path, b'[{"prompt": "b", "completion": "2"}]', "a.json")
    assert load_examples([first, str(second)]) == [Example.completion("a", "1"), Example.completion("b", "2")]
    with pytest.raises(DataError, match="No dataset was given"):
        load_examples([])


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n',
        b'{"prompt": "a", "completion": "b"}\r\n\r\n',
        b'\xef\xbb\xbf\r\n[{"prompt": "a", "completion": "b"}]\r\n',
        b'  \n\t{"prompt": "a", "completion": "b"}  ',
    ],
    ids=["bom", "crlf", "bom, crlf, array", "spaces"],
)
def test_marks_and_blank_lines_that_editors_add_are_passed_over(data: bytes, tmp_path: Path):
    assert load_jsonl(written(tmp_path, data)) == [Example.completion("a", "b")]


def test_text_is_kept_exactly(tmp_path: Path):
    r"""Unicode line ends do not end a line, escapes are decoded, CRLF inside a text stays CRLF."""
    data = '{"prompt": "a\u2028b\u0085c", "completion": "\\r\\n\\u0000 \\ud83d\\ude00 😀 e\u0301"}'
    assert load_jsonl(written(tmp_path, data.encode())) == [
        Example.completion("a\u2028b\u0085c", "\r\n\x00 😀 😀 e\u0301")
    ]


GOOD = b'{"prompt": "a", "completion": "b"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "x"}, %s]}'
BAD = {
    "not json": (GOOD + b'{"prompt" "a"}', r":2:11: this is not JSON \(Expecting ':' delimiter\)"),
    "trailing comma": (GOOD + b'{"prompt": "a", }', r":2:\d+: this is not JSON"),
    "cut last line": (GOOD + b'{"prompt": "a", "compl', r":2:17: this is not JSON \(Unterminated string"),
    "two values on a line": (GOOD[:-1] + b" " + GOOD, r":1:36: this is not JSON \(Extra data\)"),
    "pretty-printed object": (b'{\n"prompt": "a"}', r":1:2: .*one JSON object on each line, or one array"),
    "raw line end in text": (b'{"prompt": "a\nb", "completion": "c"}', r":1:12: this is not JSON"),
    "bad array": (b'[\n{"prompt": "a", "completion": "b"}\n{"prompt"', r":3:1: .*Expecting ',' or '\]'"),
    "cut array": (b'[\n{"prompt": "a", "completion": "b"},\n', r":3:1: this is not JSON"),
    "array, trailing comma": (b'[{"prompt": "a", "completion": "b"},]', r":1:37: this is not JSON"),
    "array, then more": (b'[{"prompt": "a", "completion": "b"}]\n[]', r":2:1: this is not JSON \(Extra data\)"),
    "utf-16 with mark": ("{}".encode("utf-16"), ":1: the file looks like UTF-16; save it as UTF-8"),
    "utf-16 le": ('{"a"'.encode("utf-16-le"), ":1: the file looks like UTF-16"),
    "utf-16 be": ('{"a"'.encode("utf-16-be"), ":1: the file looks like UTF-16"),
    "latin-1": (GOOD + b'{"prompt": "caf\xe9"}', r":2: byte 16 of the line \(0xe9\) is not UTF-8"),
    "latin-1 in array": (b'[\n\n"caf\xe9"]', r":3: byte 5 of the line \(0xe9\) is not UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00", r":1: byte 2 of the line \(0x8b\) is not UTF-8"),
    "surrogate as utf-8": (b'{"prompt": "\xed\xa0\x80"}', ":1: byte 13 of the line .* is not UTF-8"),
    "lone surrogate": (
        rb'{"prompt": "a\ud83d", "completion": "b"}',
        r":1: the prompt holds half of a surrogate pair, '\\ud83d', at character 2",
    ),
    "deep": (b'{"a": ' + b"[" * 100_000, ":1: arrays and objects are nested deeper than 64"),
    "deep and whole": (
        b'{"prompt": "a", "completion": "b", "x": ' + b"[" * 65 + b"]" * 65 + b"}",
        ":1: arrays and objects are nested deeper than 64",
    ),
    "key twice": (b'{"prompt": "a", "prompt": "b", "completion": "c"}', ":1: the key 'prompt' stands twice"),
    "NaN": (b'{"prompt": "a", "completion": "b", "weight": NaN}', ":1: NaN is no JSON value"),
    "too many digits": (b'{"prompt": "a", "completion": "b", "weight": ' + b"9" * 5000 + b"}", ":1: Exceeds the limit"),
    "infinite weight": (b'{"prompt": "a", "completion": "b", "weight": 1e999}', ":1: the weight is inf"),
    "negative weight": (b'{"prompt": "a", "completion": "b", "weight": -1}', ":1: the weight is -1"),
    "weight as text": (b'{"prompt": "a", "completion": "b", "weight": "1"}', ":1: the weight is '1'"),
    "number as record": (GOOD + b"7", ":2: the record is a number; it must be a JSON object"),
    "null as record": (b"[null]", ":1: the record is null; it must be a JSON object"),
    "unknown shape": (
        b'{"question": "a", "answer": "b"}',
        ":1: the record's keys are 'question', 'answer'; write it with the keys of one of: messages \\(and tools\\); "
        r"conversations; completion \+ prompt; instruction \+ output \(and input\); assistant \+ user \(and system\); "
        r"chosen \+ rejected \(and prompt\); input \+ preferred_output; text\.",
    ),
    "no key": (b"{}", ":1: the record's keys are none; write"),
    "missing output": (b'{"instruction": "a", "input": "b"}', ":1: the record's keys are 'instruction', 'input';"),
    "two shapes": (
        b'{"prompt": "a", "completion": "b", "messages": []}',
        ":1: the record can be read as messages and completion; keep the keys of one",
    ),
    "null prompt": (b'{"prompt": null, "completion": "b"}', ":1: the prompt is null; it must be text"),
    "number completion": (b'{"prompt": "a", "completion": 42}', ":1: the completion is of type int; it must be text"),
    "list as input": (b'{"instruction": "a", "input": ["b"], "output": "c"}', ":1: 'input' is an array; it must be"),
    "null output": (b'{"instruction": "a", "output": null}', ":1: 'output' is null; it must be text"),
    "number user": (b'{"user": 1, "assistant": "a"}', ":1: 'user' is a number; it must be text"),
    "messages no array": (b'{"messages": "hi"}', ":1: 'messages' is text; it must be an array of objects with role"),
    "no message": (b'{"messages": []}', ":1: a conversation has 0 messages"),
    "message no object": (CHAT % b'"hi"', r":1: messages\[1\] must be an object with the keys role and content"),
    "message without content": (CHAT % b'{"role": "assistant"}', r":1: messages\[1\] must be an object"),
    "wrong role": (CHAT % b'{"role": "bot", "content": "a"}', r":1: messages\[1\]: the role 'bot' is not known; use"),
    "null content": (CHAT % b'{"role": "assistant", "content": null}', r":1: messages\[1\]: .*is null; it must be"),
    "a picture": (
        CHAT % b'{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}',
        r":1: messages\[1\]: a message's content has a part of type 'image_url'; only parts of text can be trained",
    ),
    "a part that is no object": (
        CHAT % b'{"role": "assistant", "content": ["a"]}',
        r":1: messages\[1\]: a message's content has a part that is no text",
    ),
    "a part without text": (
        CHAT % b'{"role": "assistant", "content": [{"type": "text", "text": null}]}',
        r":1: messages\[1\]: a message's content has a part that is no text",
    ),
    "message weight": (
        CHAT % b'{"role": "assistant", "content": "a", "weight": 0}',
        r":1: messages\[1\] has a weight of its own",
    ),
    "tool calls": (
        CHAT % b'{"role": "assistant", "content": "", "tool_calls": [{}]}',
        r":1: messages\[1\]: a tool call must be an object of type function",
    ),
    "tools": (
        b'{"tools": [{}], "messages": [{"role": "user", "content": "a"}]}',
        ":1: a tool must be an object of type function",
    ),
    "tools that no template would be given": (
        b'{"tools": [{}], "prompt": "a", "completion": "b"}',
        ":1: 'tools' can't be trained",
    ),
    "calls in the old way": (
        CHAT % b'{"role": "assistant", "content": "a", "function_call": {"name": "f"}}',
        r":1: 'function_call' can't be trained",
    ),
    "reasoning of the user": (
        b'{"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}',
        r":1: messages\[0\]: a message of the user has reasoning or tool calls",
    ),
    "sharegpt role": (
        b'{"conversations": [{"from": "tool", "value": "a"}]}',
        r":1: conversations\[0\]: the role 'tool'",
    ),
    "sharegpt with role": (
        b'{"conversations": [{"role": "user", "content": "a"}]}',
        r":1: conversations\[0\] must be an object with the keys from and value",
    ),
    "empty": (b"", "data.jsonl holds no record; it needs at least one"),
    "blank": (b"\xef\xbb\xbf\n \r\n\n", "data.jsonl holds no record"),
    "empty array": (b" [ ] ", "data.jsonl holds no record"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_file_is_refused_with_its_place_and_the_cause(kind: str, tmp_path: Path):
    data, message = BAD[kind]
    with pytest.raises(DataError, match=message) as refused:
        load_examples([written(tmp_path, data)])
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    str(refused.value).encode()  # can be printed


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing.jsonl can't be read .*; check the path"):
        load_jsonl(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"can't be read .*; check the path"):
        load_jsonl(tmp_path)


def test_a_line_beyond_the_limit_is_refused_and_one_at_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "MAX_LINE", len(GOOD))
    assert len(load_jsonl(written(tmp_path, GOOD * 3))) == 3
    with pytest.raises(DataError, match=f":2: the line is longer than {len(GOOD)} bytes"):
        load_jsonl(written(tmp_path, GOOD + GOOD[:-1] + b"  \n"))
    with pytest.raises(DataError, match=":1: the line is longer"):
        load_jsonl(written(tmp_path, b" " * 100 + b"\n" + GOOD))


def test_an_array_on_one_line_may_be_longer_than_a_line_but_not_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = b"[" + b",".join([GOOD.strip()] * 10) + b"]"
    monkeypatch.setattr(lines, "MAX_LINE", 50)
    monkeypatch.setattr(json_records, "MAX_ARRAY", len(data))
    assert len(load_jsonl(written(tmp_path, data))) == 10
    monkeypatch.setattr(json_records, "MAX_ARRAY", len(data) - 1)
    with pytest.raises(DataError, match=r":1: the array is longer than .* bytes; save it as JSONL"):
        load_jsonl(written(tmp_path, data))


@given(st.lists(examples, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_saved_loads_back_equal(tmp_path: Path, saved: list[Example]):
    path = tmp_path / "saved.jsonl"
    save_jsonl(saved, path)
    assert load_jsonl(path) == saved
    assert dataset_hash(load_jsonl(path)) == dataset_hash(saved)
    assert [file.name for file in tmp_path.iterdir()] == ["saved.jsonl"]


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",: \n\\pru01', max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_give_examples_or_a_data_error(tmp_path: Path, data: bytes):
    try:
        assert load_jsonl(written(tmp_path, data))
    except DataError as error:
        assert str(tmp_path) in str(error)


def test_saving_nothing_or_too_long_an_example_is_refused_and_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = written(tmp_path, GOOD)
    with pytest.raises(DataError, match="There is no example to write"):
        save_jsonl([], path)
    monkeypatch.setattr("gguflora.data.formats.MAX_LINE", 100)
    with pytest.raises(DataError, match="Example 2 takes more than 100 bytes"):
        save_jsonl([Example.completion("a", "b"), Example.completion("a" * 100, "b")], path)
    assert path.read_bytes() == GOOD


def test_the_hash_follows_contents_order_and_weights_but_not_files(tmp_path: Path):
    one, two = Example.completion("a", "b"), Example.completion("c", "d")
    path = written(tmp_path, b'[{"completion": "b", "prompt": "a"}]', "other.json")
    assert dataset_hash([one]) == dataset_hash(load_jsonl(path))
    others = [[two, one], [one], [one, two, two], [one, Example.completion("c", "d", weight=0.5)]]
    hashes = {dataset_hash(data) for data in [[one, two], *others]}
    assert len(hashes) == 5
