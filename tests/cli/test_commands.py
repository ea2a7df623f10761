"""The commands do what their help says, and what they print is what a program or a person can rely on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclopts import Argument

from gguflora.cli import app
from gguflora.gguf import open_gguf, write_adapter
from gguflora.llamacpp import LlamaModel
from tests.runs import COMMAND, command, metrics, write_dataset
from tests.tiny import IM_END, IM_START, random_adapter, tiny_llama

COMMANDS = ("train", "eval", "generate", "tokenize", "inspect", "render", "data show", "data check", "doctor")
CHATML = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "data.jsonl", 12)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    write_adapter(path, random_adapter(open_gguf(model)))
    return path


def in_process(*arguments: object, data: bytes | None = None, environment: dict[str, str] | None = None) -> Any:
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        input=data,
        check=False,
        timeout=120,
        env=os.environ | root | (environment or {}),
    )


# --- train ---


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The whole command as a process, the check in llama.cpp included; and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ["--epochs", 2, "--learning-rate", "1e-2", "--validation-split", 0.3, "--save-steps", 4]
    return in_process("train", model, data, "--output-dir", folder, "--json", *options), folder


def test_train_json_prints_one_event_a_line_and_text_on_stderr(trained: tuple[Any, Path]):
    done, folder = trained
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [event["event"] for event in events] == [
        "model_loaded",
        "data_ready",
        "first_example",
        "memory_planned",
        "planned",
        "evaluated",
        *["step_done"] * 2,
        *["epoch_done", "evaluated", "saved", "saved"],
        "step_done",
        *["step_done", "epoch_done", "evaluated", "saved", "saved", "saved"],
        "saved",
        "verified",
        *["answer"] * 3,
        "finished",
    ]
    finished = events[-1]
    assert finished["best_adapter"] == str(folder / "best_adapter_epoch_2.gguf") == finished["adapter"]
    assert finished["best_epoch"] == 2
    losses = [event["loss"] for event in events if event["event"] == "evaluated"]
    assert finished["best_loss"] == losses[-1] < losses[0]
    assert finished["total_steps"] == 4
    text = done.stderr.decode()
    assert "verified in llama.cpp" in text
    assert f"llama-server -m {events[0]['path']} --lora {finished['adapter']}" in text
    assert "\x1b" not in text, "no terminal, no escapes"


def test_the_metrics_file_has_the_events_that_json_printed(trained: tuple[Any, Path]):
    done, folder = trained
    assert metrics(folder) == [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_run_json_names_the_best_and_the_result(trained: tuple[Any, Path]):
    _, folder = trained
    record = json.loads((folder / "run.json").read_text())
    assert record["result"]["best_adapter"] == str(folder / "best_adapter_epoch_2.gguf")
    assert record["model"]["name"] == "tiny"
    assert record["lora"]["rank"] == 16


def test_everything_that_a_person_should_see_is_shown(trained: tuple[Any, Path], model: Path):
    """The parts of the run, each ending in something to act on, without a terminal."""
    done, folder = trained
    text = done.stderr.decode()
    for part in (
        "tiny (llama,",  # the model: name, architecture
        "29 F32",  # types
        "chat template",  # identity and template
        "8 examples to train, 4 to validate",
        "of them trained; lengths",
        "⟦it is x",  # the first example, its trained part marked
        "<|im_end|>⟧",
        "21 pairs (3 attn_q,",
        "4 steps, 2 an epoch",
        "of training left, as the first steps went",
        "validation loss before training",
        "step 1/4  epoch 1  loss ",
        "  validation ",
        "  lr ",
        "  gradient norm ",
        " tok/s  ",
        " MB  ",
        " left",
        "loss here / in llama.cpp",
        "expected gap up to",
        "the base is back to the bit",
        "Asked",
        "expected",
        "before",
        "after",
        "total time",
        "4 steps",
        "ms a step",
        "final loss",
        "best loss",
        f"Files     in {folder}",
        "best_adapter_epoch_2.gguf",
        "checkpoint-step-4.gguf",
        "final_adapter.gguf",
        f"gguflora generate {model} --lora",
        f"gguflora eval {model}",
    ):
        assert part in text, part


def test_the_trained_adapter_changes_what_llamacpp_says_about_the_validation_examples(
    trained: tuple[Any, Path], model: Path
):
    done, folder = trained
    verified = next(json.loads(line) for line in done.stdout.splitlines() if b'"verified"' in line)
    assert verified["restored"]
    for side in ("base", "tuned"):  # 0.01: far more than a float16 cache does on a few tokens, far less than the gain
        assert verified[f"{side}_ours"] == pytest.approx(verified[f"{side}_llamacpp"], abs=0.01)
    assert verified["tuned_llamacpp"] < verified["base_llamacpp"] - 1
    with LlamaModel(model, threads=1) as llama:
        handle = llama.load_lora_adapter(folder / "final_adapter.gguf")
        tokens = llama.tokenize("say 0it is x 0")
        before = llama.logits(tokens)
        llama.set_lora_adapter(handle)
        assert not np.allclose(llama.logits(tokens), before, atol=0.1)


def test_train_without_json_prints_text_on_stdout(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    assert command("train", model, data, "--output-dir", tmp_path / "run", "--max-steps", 2) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("Model ")
    assert "the lowest training loss of an epoch (nothing to validate on)" in captured.out
    assert "not verified in llama.cpp: install it with pip install 'gguflora[llamacpp]'" in captured.out
    [files] = [line for line in captured.out.splitlines() if line.startswith("Files")]
    assert files == f"Files     in {tmp_path / 'run'}"


def test_train_takes_a_validation_file_and_warns_where_it_is_trained_too(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    other = tmp_path / "validation.jsonl"
    other.write_text(data.read_text().splitlines()[3] + '\n{"prompt": "say", "completion": "else"}\n')
    arguments = ["train", model, data, "--output-dir", tmp_path / "run", "--max-steps", 1, "--validation", other]
    assert command(*arguments) == 0
    told = capsys.readouterr().out
    assert "12 examples to train, 2 to validate (given)" in told
    assert "1 validation examples are trained as well" in told


def test_train_leaves_the_signals_as_they_were(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    command("train", model, data, "--output-dir", tmp_path / "run", "--max-steps", 1)
    assert [signal.getsignal(number) for number in numbers] == before


# --- eval ---


def encoded_by_llamacpp(llama: LlamaModel, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens and labels as the definitions say, made with llama.cpp's tokenizer alone."""
    before = llama.tokenize(prompt)
    trained = [*llama.tokenize(answer, add_special=False), IM_END]
    return before + trained, [-100] * len(before) + trained


@pytest.mark.parametrize("scale", [None, 0.0, 0.5, 1.0])
def test_eval_json_gives_llamacpps_loss(
    model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float | None
):
    """Two shapes of record, weights ignored but for weight 0. 1e-5: what exact graphs differ by in float32."""
    records = [
        {"prompt": "say so", "completion": " so it is", "weight": 3},
        {"messages": [{"role": "user", "content": "Hi\r\n"}, {"role": "assistant", "content": "\nHello 🙂"}]},
        {"prompt": "left", "completion": "out", "weight": 0},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with LlamaModel(model, exact=True, threads=1) as llama:
        if scale is not None:
            llama.set_lora_adapter(llama.load_lora_adapter(adapter), scale)
        pairs = [("say so", " so it is"), (CHATML.format("Hi\r\n"), "\nHello 🙂")]
        nll = np.concatenate([llama.nll(*encoded_by_llamacpp(llama, *pair)) for pair in pairs])

    options = [] if scale is None else ["--lora", adapter, "--scale", scale]
    assert command("eval", model, path, "--json", *options) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    result = json.loads(out)
    assert (result["tokens"], result["examples"]) == (len(nll), 2)
    assert result["nll"] == pytest.approx(nll.mean(), abs=1e-5)
    assert result["perplexity"] == pytest.approx(np.exp(nll.mean()), rel=1e-4)


def test_eval_as_text(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    extra = tmp_path / "extra.jsonl"
    extra.write_text('{"prompt": "a", "completion": "", "weight": 1}\n')
    assert command("eval", model, data, extra) == 0
    assert command("eval", model, data, "--json") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert lines == [
        f"nll {result['nll']:.6f}  perplexity {result['perplexity']:.4f}",
        f"{result['tokens']} trained tokens in 12 examples",
        "skipped 1: empty answer",
    ]


# --- tokenize ---

TEXTS = [
    "",
    " ",
    "Hello world",
    "the the\r\nthe\n",
    "tabs\tand  spaces   ",
    "naïve café 🙂 日本 \u2028 \u00a0",
    "<|im_start|>user\nHi<|im_end|>\n",
    "12345 <|endoftext|> x",
    "\x00\x1b[31m",
    "-5 degrees",
    "--- title",
]


@pytest.mark.parametrize("flags", [[], ["--no-bos"], ["--no-parse-special"], ["--no-bos", "--no-parse-special"]])
def test_tokenize_json_is_one_flat_list_of_llamacpps_ids(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
):
    with LlamaModel(model, threads=1) as llama:
        for text in TEXTS:
            expected = llama.tokenize(
                text, add_special="--no-bos" not in flags, parse_special="--no-parse-special" not in flags
            )
            assert command("tokenize", model, text, "--json", *flags) == 0
            out = capsys.readouterr().out
            assert out.count("\n") == 1
            assert json.loads(out) == expected, repr(text)
            path = tmp_path / "text"
            path.write_bytes(text.encode())
            assert command("tokenize", model, "--file", path, "--json", *flags) == 0
            assert json.loads(capsys.readouterr().out) == expected, "bytes of a file are not touched"


@pytest.fixture
def model_with_bos(model: Path, tmp_path: Path) -> Path:
    """The same with add_bos_token on: one byte of its metadata."""
    data = bytearray(model.read_bytes())
    key = b"tokenizer.ggml.add_bos_token"
    at = data.index(key) + len(key) + 4
    assert data[at] == 0
    data[at] = 1
    path = tmp_path / "bos.gguf"
    path.write_bytes(data)
    return path


def test_no_bos_leaves_out_what_the_model_adds(model_with_bos: Path, capsys: pytest.CaptureFixture[str]):
    assert command("tokenize", model_with_bos, "", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [IM_START]
    assert command("tokenize", model_with_bos, "", "--json", "--no-bos") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_no_parse_special_takes_a_control_token_as_text(model: Path, capsys: pytest.CaptureFixture[str]):
    assert command("tokenize", model, "<|im_end|>", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [IM_END]
    assert command("tokenize", model, "<|im_end|>", "--json", "--no-parse-special") == 0
    assert len(json.loads(capsys.readouterr().out)) > 5


def test_after_two_hyphens_everything_is_text(model: Path, capsys: pytest.CaptureFixture[str]):
    """3 control tokens, then the bytes: "-" is 48 and so on, and "on" is a merge (tests/tiny.py)."""
    assert command("tokenize", model, "--json", "--", "--json") == 0
    with LlamaModel(model, threads=1) as llama:
        assert json.loads(capsys.readouterr().out) == llama.tokenize("--json")


def test_tokenize_reads_standard_input(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\r\nb\n")))
    assert command("tokenize", model, "--json") == 0
    with LlamaModel(model, threads=1) as llama:
        assert json.loads(capsys.readouterr().out) == llama.tokenize("a\r\nb\n")


def test_tokenize_as_text_names_each_token(model: Path, capsys: pytest.CaptureFixture[str]):
    assert command("tokenize", model, "the<|im_end|>") == 0
    lines = capsys.readouterr().out.splitlines()
    with LlamaModel(model, threads=1) as llama:
        ids = llama.tokenize("the<|im_end|>")
        assert lines == [*(f"{id:7d}  {llama.detokenize([id])!r}" for id in ids), f"{len(ids)} tokens"]
    assert lines[-2] == "      2  '<|im_end|>'"


def test_warnings_of_tokenize_go_to_stderr(model: Path, tmp_path: Path):
    """A file without `tokenizer.ggml.pre` works as llama.cpp's default, with a warning."""
    data = model.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.prx")
    path = tmp_path / "nopre.gguf"
    path.write_bytes(data)
    done = in_process("tokenize", path, "Hello", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)
    assert done.stdout.count(b"\n") == 1
    assert b"WARNING" in done.stderr
    assert b"tokenizer.ggml.pre" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_is_no_error(model: Path, encoding: str):
    text = "日本🙂é"
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = in_process("tokenize", model, text, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(b"tokens")


def test_a_reader_that_goes_away_is_no_bug(model: Path, tmp_path: Path):
    path = tmp_path / "long.txt"
    path.write_text("word " * 200_000)
    arguments = [*COMMAND, "tokenize", str(model), "--file", str(path)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as p:
        assert p.stdout
        assert p.stderr
        p.stdout.readline()
        p.stdout.close()
        assert p.stderr.read() == b""
    assert p.returncode == 141  # 128 + SIGPIPE, as a shell has it


# --- generate ---


def greedy(model: Path, prompt: str, count: int, adapter: Path | None = None, scale: float = 1.0) -> str:
    with LlamaModel(model, threads=1) as llama:
        if adapter:
            llama.set_lora_adapter(llama.load_lora_adapter(adapter), scale)
        return llama.detokenize(llama.generate(llama.tokenize(prompt), count), special=False)


@pytest.fixture(scope="module")
def smollm2_adapter(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "adapter.gguf"
    write_adapter(path, random_adapter(open_gguf(smollm2_path), rank=2))
    return path


def test_generate_answers_a_question_in_llamacpp(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    question = "What is 2+2?"
    assert command("generate", smollm2_path, question, "--max-tokens", 12) == 0
    answer = capsys.readouterr().out
    assert "4" in answer
    assert answer == greedy(smollm2_path, CHATML.format(question), 12) + "\n"


def test_generate_raw_goes_on_from_the_text(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    text = "The capital of France is"
    assert command("generate", smollm2_path, text, "--raw", "--max-tokens", 6) == 0
    assert capsys.readouterr().out == greedy(smollm2_path, text, 6) + "\n"


def test_generate_with_an_adapter_at_its_scale(
    smollm2_path: Path, smollm2_adapter: Path, capsys: pytest.CaptureFixture[str]
):
    text, answers = "The capital of France is", {}
    for scale in (0, 1, 3):
        options = ["--lora", smollm2_adapter, "--scale", scale, "--raw", "--max-tokens", 6]
        assert command("generate", smollm2_path, text, *options) == 0
        answers[scale] = capsys.readouterr().out
    assert answers[0] == greedy(smollm2_path, text, 6) + "\n"
    assert answers[1] == greedy(smollm2_path, text, 6, smollm2_adapter) + "\n"
    assert answers[3] == greedy(smollm2_path, text, 6, smollm2_adapter, 3.0) + "\n"
    assert len(set(answers.values())) > 1, "the adapter does nothing"


# --- help and version ---


def arguments_of(name: str) -> list[Argument]:
    found = app
    for word in name.split():
        found = found[word]
    return list(found.assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_option(name: str, capsys: pytest.CaptureFixture[str]):
    command(*name.split(), "--help")
    out = capsys.readouterr().out
    options = [option for argument in arguments_of(name) for option in argument.names if option.startswith("-")]
    assert options
    for option in options:
        assert option + " " in out
    for argument in arguments_of(name):
        if argument.show:
            text = argument.parameter.help or ""
            assert len(text) > 9, f"{argument.name} has no help"
            assert text.endswith((".", ")")), text


def test_the_help_of_the_program_names_each_command(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["--help"], ["-h"]):
        assert command(*arguments) == 0
        out = capsys.readouterr().out
        assert all(name.split()[0] in out for name in COMMANDS)


def test_help_comes_at_once_and_without_torch():
    """The fastest of three: a busy machine makes any one of them slow."""
    check = (
        "import sys\n"
        "from gguflora.cli import main\n"
        "for name in sys.argv[1:]:\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit as ended: assert ended.code == 0\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'numpy' not in sys.modules\n"
    )
    times = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", check, *COMMANDS], check=True, capture_output=True, timeout=60)
        times.append(time.monotonic() - started)
    assert min(times) < 1


@pytest.mark.parametrize("name", ["tokenize", "render", "inspect"])
def test_what_computes_nothing_starts_without_torch(model: Path, tmp_path: Path, name: str):
    messages = tmp_path / "messages.json"
    messages.write_text('[{"role": "user", "content": "hi"}]')
    more = {"tokenize": ["text"], "render": [str(messages)], "inspect": []}
    check = (
        "import sys\n"
        "from gguflora.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    arguments = [sys.executable, "-c", check, name, str(model), *more[name]]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert command("--version") == 0
    assert capsys.readouterr().out == version("gguflora") + "\n"
    installed = Path(sys.executable).with_name("gguflora")
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == version("gguflora") + "\n"
