"""`data show` and `data check` say of a dataset what training would make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguflora.data import Example
from gguflora.errors import MachineError
from gguflora.run import template_check
from gguflora.run.data_check import histogram
from gguflora.tokenizer import CHATML
from tests.runs import command
from tests.tiny import tiny_llama

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def dataset(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"user": question, "assistant": answer}


def test_show_marks_what_is_trained(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = dataset(tmp_path, chat("Hi [b]:heart:[/b]", "Yes"), chat("", " "), {"prompt": "a", "completion": "b"})
    assert command("data", "show", model, data) == 0
    out = capsys.readouterr().out
    first, second = out.split(f"{data}:3: ")
    assert first.splitlines()[0].startswith(f"{data}:1: ")
    assert first.split("\n", 1)[1] == (
        f"{SYSTEM}<|im_start|>user\nHi [b]:heart:[/b]<|im_end|>\n<|im_start|>assistant\n[Yes<|im_end|>]\n\n"
    )
    assert second == "3 tokens, 2 trained\na[b<|im_end|>]\n"
    assert f"{data}:2" not in out


def test_show_with_ids_has_one_token_a_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In the tiny model 3 control tokens come first, then the 256 bytes."""
    data = dataset(tmp_path, {"prompt": "a", "completion": "b"})
    assert command("data", "show", model, data, "--ids") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{data}:1: 3 tokens, 2 trained"
    assert [line.split() for line in lines[1:]] == [["100", "'a'"], ["*", "101", "'b'"], ["*", "2", "'<|im_end|>'"], []]


@pytest.mark.parametrize(("options", "shown"), [(["--limit", 2], 2), ([], 5), (["--limit", 0], 0)])
def test_show_stops_at_the_limit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], shown: int
):
    data = dataset(tmp_path, *[{"prompt": f"q{n}", "completion": "x"} for n in range(9)])
    assert command("data", "show", model, data, *options) == 0
    assert capsys.readouterr().out.count("trained") == shown


def test_show_uses_the_options_of_training(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = dataset(tmp_path, chat("q", "a"))
    assert command("data", "show", model, data, "--train-on", "everything", "--chat-template", "chatml") == 0
    text = capsys.readouterr().out.split("\n", 1)[1]
    assert text == "<|im_start|>[user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n]\n"


def checked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command("data", "check", *arguments, "--json") == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    facts: dict[str, Any] = json.loads(line)
    return facts


def test_check_counts_by_hand(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Bytes are tokens: "q" and "a" and the end are 3 tokens, 2 trained; the last one but one has 12, 11 trained."""
    short = {"prompt": "q", "completion": "a"}
    data = dataset(
        tmp_path,
        short,
        short,
        {"prompt": "x", "completion": "b"},
        {"prompt": "x", "completion": " "},
        {"prompt": "x", "completion": "b", "weight": 0},
        {"prompt": "z", "completion": "0123456789"},
        {"prompt": "z", "completion": "0" * 40},
    )
    validation = tmp_path / "v.jsonl"
    validation.write_text(json.dumps(short) + "\n")
    options = ("--validation", validation, "--max-length", 20, "--batch-size", 3, "--epochs", 2)
    facts = checked(capsys, model, data, *options)
    assert facts == {
        "examples": 8,
        "train": 4,
        "validation": 1,
        "validation_from": "given",
        "train_tokens": 3 * 3 + 12,
        "trained_tokens": 3 * 2 + 11,
        "share": 17 / 21,
        "lengths": [3, 3, 12],
        "histogram": [[4, 3], [8, 0], [16, 1]],
        "skipped": {
            "empty answer": [f"{data}:4"],
            "weight 0": [f"{data}:5"],
            "longer than max_length": [f"{data}:7"],
        },
        "skipped_counts": {"empty answer": 1, "weight 0": 1, "longer than max_length": 1},
        "altered": {},
        "altered_counts": {},
        "duplicates": 2,
        "overlap": 1,
        "empty": 1,
        "endless": 0,
        "steps_per_epoch": 2,
        "total_steps": 4,
        "warnings": [],
        "templates": None,
    }


def test_check_compares_conversations_of_each_shape_with_llama_server(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    system = {"system": "s", "user": "q", "assistant": "a"}
    data = dataset(tmp_path, chat("q", "a"), chat("another", "b"), system, {"prompt": "x", "completion": "y"})
    assert checked(capsys, model, data)["templates"] == {"compared": 2, "equal": 2, "differences": [], "problem": ""}
    assert command("data", "check", model, data) == 0
    assert "templates: 2 of 2 equal llama-server's\n" in capsys.readouterr().out


# llama-server takes what has this mark for Gemma 4's and adds a turn of the model behind <turn|>.
RENDERED_OTHERWISE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<turn|>\n{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<turn|>\n{% endif %}{# '<|tool_call>call:' #}"
)


def test_check_shows_both_texts_where_they_differ(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    template = tmp_path / "t.jinja"
    template.write_text(RENDERED_OTHERWISE)
    data = dataset(tmp_path, chat("Hello", "a"))
    options = (model, data, "--chat-template", template)
    [difference] = checked(capsys, *options)["templates"]["differences"]
    end = "Hello<|im_end|><turn|>\n"
    assert difference == {
        "source": f"{data}:1",
        "place": len(end),
        "ours": end[-20:],
        "theirs": f"{end[-20:]}<|turn>model\n",
    }
    assert command("data", "check", *options) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "templates: 0 of 1 equal llama-server's",
        f"warning: {data}:1 is rendered otherwise by llama-server, from character 23 on:",
        r"  ours           'lo<|im_end|><turn|>\n'",
        r"  llama-server's 'lo<|im_end|><turn|>\n<|turn>model\n'",
    ]


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (
            "available",
            "not compared with llama-server's (llama-server is not installed: pip install 'gguflora[llamacpp]')",
        ),
        ("LlamaServer", "not compared with llama-server's (llama-server could not be started: no memory)"),
    ],
)
def test_check_says_in_one_line_why_nothing_was_compared(
    what: str,
    line: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(*_: object, **__: object) -> bool:
        if what == "LlamaServer":
            raise MachineError("no memory.")
        return False

    monkeypatch.setattr(template_check, what, fails)
    assert command("data", "check", model, dataset(tmp_path, chat("q", "a"))) == 0
    assert f"templates: {line}\n" in capsys.readouterr().out


def test_the_conversations_compared_are_the_first_of_each_shape():
    def talk(*roles: str, said: str = "x") -> Example:
        return Example.messages([{"role": role, "content": said} for role in roles])

    thinking = Example.messages(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    )
    first, turns = talk("user", "assistant"), talk("user", "assistant", "user", "assistant")
    examples = [first, talk("user", "assistant", said="y"), thinking, Example.completion("a", "b"), turns, first]
    assert template_check.distinct(examples) == [first, thinking, turns]
    many = [talk("user", *["user"] * length, "assistant") for length in range(20)]
    assert template_check.distinct(many) == many[: template_check.MOST]


def test_show_notes_what_is_not_trained_as_one_might_expect(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    template = tmp_path / "t.jinja"
    template.write_text(CHATML.replace("assistant\\n", "assistant\\n<think>\\n"))
    data = dataset(tmp_path, chat("q", "a"))
    assert command("data", "show", model, data, "--chat-template", template) == 0
    head, note, text = capsys.readouterr().out.split("\n", 2)
    assert head.startswith(f"{data}:1: ")
    assert note == (
        "note: answers without reasoning where the chat template has a place for it: the model learns to think nothing"
    )
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n[\n</think>\n\na<|im_end|>]\n\n"


def test_check_counts_steps_of_tokens(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Four examples of 3 tokens, 6 a step."""
    data = dataset(tmp_path, *({"prompt": text, "completion": "b"} for text in "wxyz"))
    facts = checked(capsys, model, data, "--batch-tokens", 6, "--epochs", 3)
    assert facts["lengths"] == [3, 3, 3]
    assert (facts["steps_per_epoch"], facts["total_steps"]) == (2, 6)


def test_check_names_what_is_cut_and_what_never_ends(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = dataset(tmp_path, {"prompt": "z", "completion": "0" * 40}, {"prompt": "q", "completion": "a"})
    options = (model, data, "--max-length", 20, "--overlong", "truncate-right")
    facts = checked(capsys, *options)
    assert facts["altered"] == {"longer than max_length: the end was cut off": [f"{data}:1"]}
    assert (facts["endless"], facts["lengths"]) == (1, [3, 20, 20])
    assert command("data", "check", *options) == 0
    text = capsys.readouterr().out
    for part in (
        "2 examples: 2 to train, 0 to validate (none below 100 examples)",
        "23 tokens an epoch, 21 of them trained (91%)",
        f"changed 1: longer than max_length: the end was cut off ({data}:1)",
        "1 examples train no token that ends an answer",
        "  up to     32        1  ########################################",
    ):
        assert part in text


@pytest.mark.parametrize("what", ["train", "eval", "data check"])
def test_progress_never_stands_among_what_is_for_programs(
    what: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """It is text on standard error, here for work that takes no time at all."""
    monkeypatch.setattr("gguflora.report.progress._QUIET", 0.0)
    monkeypatch.setattr("gguflora.report.progress._LINES", 0.0)
    data = dataset(tmp_path, *({"prompt": text, "completion": "b"} for text in "wxyz"))
    options = ["--output-dir", tmp_path / "out", "--dry-run"] if what == "train" else []
    assert command(*what.split(), model, data, "--json", *options) == 0
    told = capsys.readouterr()
    assert [type(json.loads(line)) for line in told.out.splitlines()] == [dict] * len(told.out.splitlines())
    assert "encoding: 1 of 4 examples, about 0 s left\n" in told.err


def test_check_counts_all_and_names_the_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of skipped examples, of bad records and of changed examples, in the JSON and in the lines."""
    monkeypatch.setattr("gguflora.data.named.MOST_NAMED", 4)
    good, empty, long = ({"prompt": "q", "completion": text} for text in ("a", " ", "0" * 40))
    data = dataset(tmp_path, good, *[empty, {"none": 1}, long] * 5)
    options = (model, data, "--max-length", 20, "--overlong", "truncate-right", "--on-bad-record", "skip")
    facts = checked(capsys, *options)
    assert facts["skipped_counts"] == {"bad record": 5, "empty answer": 5}
    assert facts["skipped"]["empty answer"] == [f"{data}:{line}" for line in (2, 5, 8, 11)]
    assert len(facts["skipped"]["bad record"]) == 4
    assert list(facts["altered_counts"].values()) == [5]
    assert command("data", "check", *options) == 0
    assert f"skipped 5: empty answer ({data}:2, {data}:5, {data}:8, ...)" in capsys.readouterr().out


def test_training_stops_where_no_answer_has_an_end(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Cut off on the right, every answer goes on for ever."""
    data = dataset(tmp_path, chat("q", "x" * 99), chat("p", "y" * 99))
    options = ("--max-length", 150, "--overlong", "truncate-right", "--chat-template", "chatml")
    assert command("train", model, data, "--output-dir", tmp_path / "out", "--max-length", 60, *options[2:]) == 2
    error = capsys.readouterr().err
    assert f"No example trains a token that ends an answer (the first is {data}:1)" in error
    assert not (tmp_path / "out").exists()
    assert command("data", "check", model, data, *options) == 0


def test_lengths_are_counted_by_powers_of_two():
    assert histogram([1, 2, 3, 4, 5, 30]) == [(1, 1), (2, 1), (4, 2), (8, 1), (16, 0), (32, 1)]


def test_looking_at_data_starts_without_torch(model: Path, tmp_path: Path):
    check = (
        "import sys\n"
        "from gguflora.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    data = dataset(tmp_path, chat("q", "a"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("show", "check"):
        arguments = [sys.executable, "-c", check, "data", name, str(model), str(data)]
        subprocess.run(arguments, check=True, capture_output=True, timeout=60, env=environment)
