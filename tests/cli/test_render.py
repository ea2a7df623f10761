"""What `render` prints is what llama-server answers to /apply-template, byte for byte; the rest it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguflora.gguf import ValueType, open_gguf, write_gguf
from gguflora.llamacpp import LlamaServer
from tests.gguf.test_split import tensors_of, typed
from tests.runs import COMMAND, command
from tests.tiny import tiny_llama

Chat = list[dict[str, Any]]

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be nice."}
ANSWER = {"role": "assistant", "content": "yes"}
CHATS: dict[str, Chat] = {
    "one": [USER],
    "none": [],
    "turns": [{"role": "system", "content": "Be nice.\n"}, USER, ANSWER, {"role": "user", "content": " again "}],
    "any text": [
        {"role": "user", "content": "\x1b[31m \r\n\t\u2028 <|im_end|>{{ x }} \U0001f468\u200d\U0001f469 'é' \"z\" \x00"}
    ],
    "roles": [
        {"role": "developer", "content": "short"},
        {"role": "tool", "content": "7"},
        {"role": "", "content": "x"},
    ],
    "null": [{"role": "user", "content": None}],
    "more keys": [{"role": "user", "content": "a", "weight": 0.5, "id": [1]}],
    "continued": [USER, {"role": "assistant", "content": " The answer <|im_end|>\n"}],
    "continued alone": [ANSWER],
    "continued from nothing": [USER, {"role": "assistant", "content": ""}],
    "continued after turns": [USER, ANSWER, USER, ANSWER],
}
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
"""A template that opens no answer, so that nothing stands between what is closed and what is continued."""


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LlamaServer]:
    with LlamaServer(smollm2_path, context_length=256, threads=1) as running:
        yield running


def file(folder: Path, value: object) -> Path:
    path = folder / "messages.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def rendered(capsysbinary: pytest.CaptureFixture[bytes], *arguments: object) -> str:
    assert command("render", *arguments) == 0
    return capsysbinary.readouterr().out.decode()


@pytest.mark.parametrize("options", [[], ["--no-generation-prompt"]])
@pytest.mark.parametrize("name", CHATS)
def test_the_text_is_llama_servers(
    smollm2_path: Path,
    server: LlamaServer,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    name: str,
    options: list[str],
) -> None:
    chat = CHATS[name]
    expected = server.apply_template(chat, add_generation_prompt=not options)
    assert rendered(capsysbinary, smollm2_path, file(tmp_path, chat), *options) == expected
    assert rendered(capsysbinary, smollm2_path, file(tmp_path, {"messages": chat}), *options) == expected
    line = rendered(capsysbinary, smollm2_path, file(tmp_path, chat), *options, "--json")
    assert line.count("\n") == 1
    assert json.loads(line) == {"prompt": expected}


@pytest.mark.parametrize(
    "chat", [[USER], [USER, ANSWER, USER], [USER, ANSWER], [ANSWER], [SYSTEM, USER, ANSWER, USER], [SYSTEM]]
)
def test_the_text_of_another_template_is_llama_servers(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], chat: Chat
) -> None:
    whole = open_gguf(tiny_llama(tmp_path / "tiny.gguf"))
    path = tmp_path / "mistral.gguf"
    template = {"tokenizer.chat_template": (ValueType.STRING, MISTRAL)}
    write_gguf(path, typed(whole) | template, tensors_of(whole, list(whole.tensors)))
    with LlamaServer(path, context_length=256, threads=1) as server:
        for options in ([], ["--no-generation-prompt"]):
            expected = server.apply_template(chat, add_generation_prompt=not options)
            assert rendered(capsysbinary, path, file(tmp_path, chat), *options) == expected


TOOLS = (
    "{% for t in tools %}<|im_start|>{{ t | tojson }}<|im_end|>{% endfor %}{% for m in messages %}<|im_start|>"
    "{{ m.role }} {{ m.name }} {{ m.tool_call_id }} {{ m.reasoning_content }} {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{{ c.id }}"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% if mood == 'good' %}!{% endif %}{% endif %}"
)
WITH_TOOLS = {
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "a tool",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": [1, "\u00e9"], "a": 2}'}},
                {"type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "name": "f", "tool_call_id": "1", "content": "7"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "a": [1]}}}],
}


def test_tools_calls_and_options_reach_the_template_as_in_llama_server(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    model, template = tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "t.jinja"
    template.write_text(TOOLS)
    options = ("--chat-template", template, "--template-option", "mood=good")
    with LlamaServer(model, chat_template=TOOLS, context_length=256, threads=1) as server:
        expected = server.apply_template(**WITH_TOOLS, chat_template_kwargs={"mood": "good"})
    assert rendered(capsysbinary, model, file(tmp_path, WITH_TOOLS), *options) == expected
    assert expected.endswith("assistant!")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_standard_input_is_read_and_bytes_are_utf_8_whatever_the_terminal(
    smollm2_path: Path, server: LlamaServer, mark: str
) -> None:
    chat = CHATS["any text"]
    done = subprocess.run(
        [*COMMAND, "render", str(smollm2_path), "-"],
        input=(mark + json.dumps(chat, ensure_ascii=False)).encode(),
        capture_output=True,
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == server.apply_template(chat).encode()
    assert done.stderr == b""


def test_a_file_may_begin_with_a_hyphen(
    smollm2_path: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path, [USER]).rename(tmp_path / "-x.json")
    assert "hi<|im_end|>" in rendered(capsysbinary, smollm2_path, "-x.json")
    assert command("render", smollm2_path, "--jsno") == 2
    assert b"--jsno" in capsysbinary.readouterr().err


BAD = {
    "no JSON": (b'[{"role": "user"', "messages.json:1:17: this is not JSON"),
    "no JSON, in its line": (b'[\n{"role": "user",}]', "messages.json:2:17"),
    "empty": (b"", "this is not JSON"),
    "two values": (b"[] []", "messages.json:1:4: this is not JSON (Extra data)"),
    "no UTF-8": (b'[{"role": "user", "content": "\xff"}]', "not UTF-8 (byte 30)"),
    "text": (b'"hi"', "has no list of messages"),
    "no messages": (b'{"message": []}', "has no list of messages"),
    "messages of text": (b'{"messages": "hi"}', "has no list of messages"),
    "a message of text": (b'["hi"]', "message 1, is no object"),
    "no role": (b'[{"role": "user", "content": "a"}, {"content": "a"}]', "message 2, has no role"),
    "no content": (b'[{"role": "user"}]', "message 1, has no content"),
    "neither": (b"[{}]", "has no role and no content"),
    "a role of number": (b'[{"role": 1, "content": "a"}]', "the role is not text"),
    "content in parts": (b'[{"role": "user", "content": [{"type": "text", "text": "a"}]}]', "the content is not text"),
    "half a character": (b'[{"role": "user", "content": "\\ud83d"}]', "half of a surrogate pair"),
    "a key twice": (b'[{"role": "user", "content": "a", "content": "b"}]', "'content' stands twice"),
    "a key of ours": (b'[{"role": "user", "content": "a", "weight": NaN}]', "NaN is no JSON value"),
    "too deep": (b"[" * 100_000, "nested too deeply"),
    "tool calls": (
        b'[{"role": "assistant", "content": "", "tool_calls": [1]}]',
        "message 1: a tool call must be an object",
    ),
    "reasoning at the end": (
        b'[{"role": "assistant", "content": "", "reasoning_content": "a"}]',
        "ends with a message of the assistant, which can't be continued yet",
    ),
    "reasoning of number": (
        b'[{"role": "user", "content": "", "reasoning_content": 1}]',
        "reasoning_content is not text",
    ),
    "tools": (b'{"messages": [], "tools": [1]}', "a tool must be an object"),
    "options in the file": (b'{"messages": [], "chat_template_kwargs": {}}', "the key chat_template_kwargs"),
    "an answer twice": (json.dumps([USER, ANSWER, ANSWER]).encode(), "ends with two messages of the assistant"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_sentence_that_names_the_place(
    smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, words = BAD[name]
    path = tmp_path / "messages.json"
    path.write_bytes(data)
    assert command("render", smollm2_path, path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gguflora: {path}")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert command("render", smollm2_path, "-") == 2
    error = capsys.readouterr().err
    assert error.startswith("gguflora: standard input")
    assert words.removeprefix("messages.json") in error


def test_two_answers_at_the_end_are_refused_by_llama_server_too(server: LlamaServer) -> None:
    with pytest.raises(Exception, match="2 or more assistant messages"):
        server.apply_template([USER, ANSWER, ANSWER])


@pytest.mark.parametrize("what", ["absent", "a folder", "too long"])
def test_a_file_that_can_not_be_read_is_refused(
    smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "messages.json"
    if what == "a folder":
        path.mkdir()
    if what == "too long":
        monkeypatch.setattr("gguflora.run.rendering.MAX_FILE", 10)
        file(tmp_path, [USER])
    assert command("render", smollm2_path, path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(path) in captured.err


def test_an_answer_is_not_continued_where_reasoning_would_stand_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = open_gguf(tiny_llama(tmp_path / "tiny.gguf"))
    path = tmp_path / "thinks.gguf"
    source = whole.metadata["tokenizer.chat_template"] + "{% if enable_thinking is defined %}<think>{% endif %}"
    write_gguf(path, typed(whole) | {"tokenizer.chat_template": (ValueType.STRING, source)}, [])
    assert command("render", path, file(tmp_path, [USER])) == 0
    assert command("render", path, file(tmp_path, [USER, ANSWER])) == 2
    assert "reasoning" in capsys.readouterr().err


def test_a_templates_own_refusal_reaches_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = open_gguf(tiny_llama(tmp_path / "tiny.gguf"))
    path = tmp_path / "mistral.gguf"
    write_gguf(path, typed(whole) | {"tokenizer.chat_template": (ValueType.STRING, MISTRAL)}, [])
    assert command("render", path, file(tmp_path, [{"role": "tool", "content": "a"}])) == 2
    assert "only user and assistant" in capsys.readouterr().err
