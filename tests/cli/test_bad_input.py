"""What can't be used is told in one sentence that names it, with the right exit code, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from gguflora.gguf import open_gguf, write_adapter
from tests.runs import COMMAND, command, tree, write_dataset
from tests.tiny import random_adapter, tiny_llama

I32, NO_TYPE = 26, 99  # ggml's number of a type that holds no weights, and one that no type has


@dataclass(frozen=True)
class Place:
    """A folder with a good model and a good dataset in it; `out` does not exist."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "tiny.gguf"

    @property
    def data(self) -> Path:
        return self.folder / "data.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def records(self, *records: object) -> Path:
        return self.file("records.jsonl", "".join(json.dumps(record) + "\n" for record in records))


Case = Callable[[Place], tuple[list[object], tuple[str, ...]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(folder / "tiny.gguf")
    tiny_llama(folder / "other.gguf", seed=1)
    tiny_llama(folder / "larger.gguf", ffn=96)
    write_dataset(folder / "data.jsonl")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    for file in made.iterdir():
        os.link(file, tmp_path / file.name)
    return Place(tmp_path)


def assert_refused(
    place: Place, capsys: pytest.CaptureFixture[str], code: int, arguments: list[object], names: tuple[str, ...]
) -> None:
    before = tree(place.folder), sorted(place.folder.rglob("*"))
    capsys.readouterr()
    assert command(*arguments) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("gguflora: ")]
    assert len(lines) == 1, error
    assert error.endswith(lines[0] + "\n"), "the sentence is the last thing said"
    assert len(lines[0]) > 20
    assert "Traceback" not in error
    assert "bug" not in lines[0]
    for name in names:
        assert name in lines[0]
    assert (tree(place.folder), sorted(place.folder.rglob("*"))) == before


# --- the model file ---


def patched(place: Place, old: bytes, new: bytes, after: bytes = b"") -> Path:
    """A copy of the model in which the first `old` behind `after` is `new`, of the same length."""
    data = place.model.read_bytes()
    at = data.index(old, data.index(after))
    assert len(old) == len(new)
    return place.file("patched.gguf", data[:at] + new + data[at + len(old) :])


def retyped(place: Place, tensor: bytes, type_number: int) -> Path:
    """A copy in which a matrix says that it is of another type: u32 dimensions, u64 each, then u32 type."""
    data = bytearray(place.model.read_bytes())
    at = data.index(struct.pack("<Q", len(tensor)) + tensor) + 8 + len(tensor)
    assert data[at : at + 4] == struct.pack("<I", 2)
    data[at + 20 : at + 24] = struct.pack("<I", type_number)
    return place.file("retyped.gguf", bytes(data))


def not_finite(place: Place, tensor: str) -> Path:
    path = Path(shutil.copy(place.model, place.folder / "nan.gguf"))
    reader = gguf.GGUFReader(path, "r+")
    [found] = [each for each in reader.tensors if each.name == tensor]
    found.data[3, 2] = float("nan")
    reader.data.flush()
    return path


MODELS: dict[str, Callable[[Place], tuple[Path, tuple[str, ...]]]] = {
    "missing": lambda p: (p.folder / "absent.gguf", ("absent.gguf", "No such file")),
    "a name that is too long": lambda p: (p.folder / ("x" * 256), ("xxx", "too long")),
    "a folder": lambda p: (p.folder, (str(p.folder), "is a folder")),
    "empty": lambda p: (p.file("empty.gguf", b""), ("empty.gguf",)),
    "one byte": lambda p: (p.file("one.gguf", b"G"), ("one.gguf",)),
    "not a GGUF": lambda p: (p.file("page.gguf", "<!doctype html><html>...</html>"), ("page.gguf",)),
    "a git-lfs pointer": lambda p: (
        p.file("lfs.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("lfs.gguf",),
    ),
    "the dataset": lambda p: (p.data, ("data.jsonl",)),
    "another architecture": lambda p: (
        patched(p, b"llama", b"llamb", after=b"general.architecture"),
        ("patched.gguf", "llamb"),
    ),
    "an unknown tensor": lambda p: (
        patched(p, b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"),
        ("patched.gguf", "blk.0.attn_"),
    ),
    "a type without weights": lambda p: (retyped(p, b"blk.1.ffn_up.weight", I32), ("blk.1.ffn_up.weight", "I32")),
    "a type that does not exist": lambda p: (
        retyped(p, b"blk.1.ffn_up.weight", NO_TYPE),
        ("blk.1.ffn_up.weight", str(NO_TYPE)),
    ),
    "values that are not finite": lambda p: (not_finite(p, "blk.1.ffn_up.weight"), ("nan.gguf", "blk.1.ffn_up.weight")),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_can_not_be_trained(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    model, names = MODELS[case](place)
    assert_refused(place, capsys, 2, ["train", model, place.data, "--output-dir", place.out], names)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.9999])
def test_a_model_that_was_cut(place: Place, capsys: pytest.CaptureFixture[str], share: float):
    data = place.model.read_bytes()
    cut = place.file("cut.gguf", data[: int(share * len(data))])
    assert_refused(place, capsys, 2, ["train", cut, place.data, "--output-dir", place.out], ("cut.gguf",))


@pytest.mark.parametrize("size", [0, 3, 30, 300, 3000, 8000])
def test_tokenize_eval_and_generate_refuse_a_cut_model_too(place: Place, capsys: pytest.CaptureFixture[str], size: int):
    cut = place.file("cut.gguf", place.model.read_bytes()[:size])
    for arguments in (["tokenize", cut, "text"], ["eval", cut, place.data], ["generate", cut, "text"]):
        assert_refused(place, capsys, 2, arguments, ("cut.gguf",))


# --- the dataset ---

GOOD = {"prompt": "a", "completion": "b"}


def folder_of_pictures(place: Place) -> Path:
    (place.folder / "pictures").mkdir()
    place.file("pictures/a.png", b"")
    return place.folder / "pictures"


DATA: dict[str, Callable[[Place], tuple[Path, tuple[str, ...]]]] = {
    "missing": lambda p: (p.folder / "absent.jsonl", ("absent.jsonl", "No such file")),
    "a name that is too long": lambda p: (p.folder / ("x" * 256), ("xxx", "too long")),
    "a folder without a dataset": lambda p: (folder_of_pictures(p), ("pictures", "without a dataset file", ".jsonl")),
    "a pattern that nothing fits": lambda p: (p.folder / "*.csv", ("*.csv", "No file fits")),
    "a file of another kind": lambda p: (p.file("data.zip", b"PK"), ("data.zip", "unpack it")),
    "a CSV row of too many cells": lambda p: (
        p.file("wide.csv", "prompt,completion\na,b\na,b,c\n"),
        ("wide.csv:3", "3 cells", "2 columns"),
    ),
    "a cut gzip": lambda p: (
        p.file("cut.jsonl.gz", gzip.compress(b"{}" * 999)[:-9]),
        ("cut.jsonl.gz", "damaged or cut"),
    ),
    "a gzip bomb": lambda p: (p.file("bomb.jsonl.gz", gzip.compress(b"\n" * 2**25)), ("bomb.jsonl.gz", "bomb")),
    "no Parquet": lambda p: (p.file("no.parquet", b"PAR1PAR1"), ("no.parquet", "can't be read")),
    "empty": lambda p: (p.file("empty.jsonl", ""), ("empty.jsonl", "no record")),
    "blank lines": lambda p: (p.file("blank.jsonl", "\n \n\n"), ("blank.jsonl", "no record")),
    "an empty array": lambda p: (p.file("array.json", "[]"), ("array.json", "no record")),
    "a broken line": lambda p: (
        p.file("broken.jsonl", json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n" + '{"prompt": "a", "compl'),
        ("broken.jsonl:3",),
    ),
    "a broken array": lambda p: (p.file("broken.json", f"[\n{json.dumps(GOOD)},\n{{]"), ("broken.json:3",)),
    "no JSON": lambda p: (p.file("prose.jsonl", "Dear model,\n"), ("prose.jsonl:1",)),
    "an unknown shape": lambda p: (p.records(GOOD, {"question": "a", "answer": "b"}), ("records.jsonl:2", "question")),
    "no object": lambda p: (p.records(GOOD, 5), ("records.jsonl:2",)),
    "a number as text": lambda p: (p.records({"prompt": "a", "completion": 5}), ("records.jsonl:1",)),
    "an unknown role": lambda p: (p.records({"messages": [{"role": "judge", "content": "a"}]}), ("records.jsonl:1",)),
    "a weight below zero": lambda p: (p.records(GOOD | {"weight": -1}), ("records.jsonl:1", "weight")),
    "UTF-16": lambda p: (p.file("wide.jsonl", json.dumps(GOOD).encode("utf-16")), ("wide.jsonl:1", "UTF-16")),
    "no UTF-8": lambda p: (p.file("latin.jsonl", b'{"prompt": "a", "completion": "\xe9"}\n'), ("latin.jsonl:1",)),
    "all of weight 0": lambda p: (p.records(*[GOOD | {"weight": 0}] * 3), ("records.jsonl:1", "3 weight 0")),
    "all empty": lambda p: (
        p.records(*[{"prompt": "a", "completion": " "}] * 3),
        ("records.jsonl:1", "3 empty answer"),
    ),
    "all too long": lambda p: (
        p.records(*[{"prompt": "a", "completion": "b" * 3000}] * 3),
        ("records.jsonl:1", "3 longer than max_length", "2048"),
    ),
    "one of each": lambda p: (
        p.records(GOOD | {"weight": 0}, {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b" * 3000}),
        ("1 weight 0", "1 empty answer", "1 longer than max_length"),
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_can_not_be_trained(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    data, names = DATA[case](place)
    assert_refused(place, capsys, 2, ["train", place.model, data, "--output-dir", place.out], names)


@pytest.mark.parametrize("case", DATA)
def test_the_same_data_to_validate_on(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    data, names = DATA[case](place)
    arguments = ["train", place.model, place.data, "--output-dir", place.out, "--validation", data]
    assert_refused(place, capsys, 2, arguments, names)


@pytest.mark.parametrize("case", [case for case in DATA if "too long" not in case and "each" not in case])
def test_the_same_data_to_evaluate(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    data, names = DATA[case](place)
    assert_refused(place, capsys, 2, ["eval", place.model, data], names)


def test_single_examples_that_can_not_be_trained_are_counted_and_skipped(
    place: Place, capsys: pytest.CaptureFixture[str]
):
    data = place.records(GOOD, GOOD | {"weight": 0}, {"prompt": "a", "completion": ""}, GOOD)
    assert command("train", place.model, data, "--output-dir", place.out, "--max-steps", "1") == 0
    told = capsys.readouterr().out
    assert f"skipped 1: weight 0 ({data}:2)" in told
    assert f"skipped 1: empty answer ({data}:3)" in told
    assert "2 examples to train" in told


# --- the options ---

OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "rank 0": (["--rank", "0"], ("--rank", "0")),
    "rank below 0": (["--rank", "-3"], ("--rank", "-3")),
    "rank larger than a matrix": (["--rank", "49"], ("--rank 49", "blk.0.attn_q.weight", "48")),
    "half a rank": (["--rank", "2.5"], ("--rank", "whole number")),
    "rank in words": (["--rank", "four"], ("--rank", "whole number")),
    "rank with an exponent": (["--rank", "1e1"], ("--rank", "whole number")),
    "epochs with an exponent": (["--epochs", "1e3"], ("--epochs", "whole number")),
    "steps as a decimal": (["--max-steps", "3.0"], ("--max-steps", "whole number")),
    "no epochs": (["--epochs", "0"], ("--epochs", "0")),
    "no batch": (["--batch-size", "0"], ("--batch-size", "0")),
    "two sizes of a step": (["--batch-size", "4", "--batch-tokens", "9"], ("--batch-size", "--batch-tokens")),
    "no saves": (["--save-steps", "0"], ("--save-steps", "0")),
    "a negative seed": (["--seed", "-1"], ("--seed", "-1")),
    "no threads": (["--threads", "0"], ("--threads", "0")),
    "learning rate 0": (["--learning-rate", "0"], ("--learning-rate", "0")),
    "learning rate below 0": (["--learning-rate", "-1e-4"], ("--learning-rate", "-0.0001")),
    "learning rate NaN": (["--learning-rate", "nan"], ("--learning-rate", "nan")),
    "learning rate infinite": (["--learning-rate", "inf"], ("--learning-rate", "inf")),
    "learning rate in words": (["--learning-rate", "fast"], ("--learning-rate", "fast")),
    "alpha 0": (["--alpha", "0"], ("--alpha", "0")),
    "alpha NaN": (["--alpha", "nan"], ("--alpha", "nan")),
    "weight decay below 0": (["--weight-decay", "-1"], ("--weight-decay", "-1")),
    "gradient norm 0": (["--max-grad-norm", "0"], ("--max-grad-norm", "0")),
    "length 1": (["--max-length", "1"], ("--max-length", "1")),
    "no overlap": (["--overlong", "split", "--overlap", "0"], ("--overlap", "1 to 2047", "0")),
    "an overlap as long as a window": (
        ["--overlong", "split", "--overlap", "64", "--max-length", "64"],
        ("--overlap", "1 to 63", "--max-length", "64"),
    ),
    "an overlap of nothing": (["--overlap", "64"], ("--overlap 64", "--overlong split")),
    "an unknown schedule": (["--schedule", "cosin"], ("--schedule", "cosin", "cosine")),
    "a split of everything": (["--validation-split", "1"], ("--validation-split", "1")),
    "a split below 0": (["--validation-split", "-0.1"], ("--validation-split", "-0.1")),
    "two ways to validate": (["--validation", "data.jsonl", "--validation-split", "0.1"], ("--validation-split",)),
    "a misspelt option": (["--learing-rate", "1e-3"], ("--learing-rate", "Did you mean --learning-rate?")),
    "another misspelt option": (["--epoch", "1"], ("--epoch", "Did you mean --epochs?")),
    "an option like none": (["--zzz"], ("--zzz",)),
    "an option twice": (["--rank", "4", "--rank", "8"], ("--rank",)),
    "no value": (["--rank"], ("--rank",)),
    "a column without a name": (["--column", "question"], ("--column", "question", "prompt=question")),
    "a column that no example has": (["--column", "promt=question"], ("--column promt=question", "prompt")),
    "a column that no record has": (["--column", "input=contxt"], ("--column input=contxt", "no record")),
    "a weight of no source": (["--source-weight", "other.jsonl=2"], ("--source-weight other.jsonl", "no source")),
    "a weight that is none": (["--source-weight", "data.jsonl=half"], ("--source-weight", "data.jsonl=0.5")),
    "another way with bad records": (["--on-bad-record", "drop"], ("--on-bad-record", "skip")),
    "an unknown target": (["--target", "nose"], ("--target nose", "attn_q", "ffn_down", "all-linear")),
    "a misspelt target": (["--target", "atn_q"], ("--target atn_q", "did you mean attn_q?")),
    "a target that llama.cpp ignores": (["--target", "attn_norm"], ("--target attn_norm",)),
    "the tied output layer": (["--target", "lm_head"], ("--target lm_head",)),
    "an empty target": (["--target", ""], ("--target",)),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_makes_no_sense(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    options, names = OPTIONS[case]
    arguments = ["train", place.model, place.data, "--output-dir", place.out, *options]
    assert_refused(place, capsys, 2, arguments, names)


@pytest.mark.parametrize("name", ["q_proj", "attn_q", "blk.1.attn_q.weight"])
def test_a_target_may_have_any_of_its_names(place: Place, capsys: pytest.CaptureFixture[str], name: str):
    arguments = ["--output-dir", place.out, "--target", name, "--target", "down_proj", "--max-steps", "1"]
    assert command("train", place.model, place.data, *arguments) == 0
    pairs = {"3 ffn_down", "1 attn_q" if name.startswith("blk") else "3 attn_q"}
    [plan] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Plan")]
    assert set(plan[plan.index("(") + 1 : plan.index(")")].split(", ")) == pairs


COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "an unknown command": (["trian", "tiny.gguf"], ("trian", 'Did you mean "train"?')),
    "train without anything": (["train"], ("MODEL", "gguflora train --help")),
    "train without data": (["train", "tiny.gguf", "--output-dir", "out"], ("DATA",)),
    "train without a folder": (["train", "tiny.gguf", "data.jsonl"], ("--output-dir",)),
    "eval without data": (["eval", "tiny.gguf"], ("DATA",)),
    "generate without a prompt": (["generate", "tiny.gguf"], ("PROMPT",)),
    "tokenize without a model": (["tokenize"], ("MODEL",)),
    "tokenize of two texts": (["tokenize", "tiny.gguf", "two", "texts"], ("'texts'", "quote")),
    "tokenize of a text and a file": (["tokenize", "tiny.gguf", "text", "--file", "data.jsonl"], ("--file",)),
    "tokenize of a missing file": (["tokenize", "tiny.gguf", "--file", "absent.txt"], ("absent.txt", "No such file")),
    "tokenize of a folder": (["tokenize", "tiny.gguf", "--file", "."], ("directory",)),
    "tokenize of no UTF-8": (["tokenize", "tiny.gguf", "--file", "tiny.gguf"], ("tiny.gguf is not UTF-8", "byte")),
    "a typed text of no UTF-8": (["tokenize", "tiny.gguf", "caf\udce9"], ("not UTF-8", "3")),
    "a prompt of no UTF-8": (["generate", "tiny.gguf", "caf\udce9"], ("not UTF-8", "3")),
    "a misspelt option of tokenize": (["tokenize", "tiny.gguf", "--jsn"], ("--jsn", "Did you mean --json?")),
    "the same before a text": (["tokenize", "tiny.gguf", "--jsn", "text"], ("--jsn", "Did you mean --json?")),
    "a misspelt option of generate": (
        ["generate", "tiny.gguf", "--max-token", "3", "text"],
        ("--max-token", "Did you mean --max-tokens?"),
    ),
    "a misspelt option of eval": (["eval", "tiny.gguf", "data.jsonl", "--scal", "2"], ("Did you mean --scale?",)),
    "no tokens to generate": (["generate", "tiny.gguf", "text", "--max-tokens", "0"], ("--max-tokens", "0")),
    "half a token to generate": (["generate", "tiny.gguf", "text", "--max-tokens", "1.5"], ("--max-tokens",)),
    "generate at no scale": (["generate", "tiny.gguf", "text", "--scale", "nan"], ("--scale", "nan")),
    "eval at no scale": (["eval", "tiny.gguf", "data.jsonl", "--scale", "inf"], ("--scale", "inf")),
    "eval of a missing adapter": (["eval", "tiny.gguf", "data.jsonl", "--lora", "absent.gguf"], ("absent.gguf",)),
    "eval of no adapter": (["eval", "tiny.gguf", "data.jsonl", "--lora", "other.gguf"], ("other.gguf", "adapter")),
    "generate with no adapter": (["generate", "tiny.gguf", "text", "--lora", "other.gguf"], ("other.gguf", "adapter")),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_can_not_be_done(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    arguments, names = COMMANDS[case]
    assert_refused(place, capsys, 2, list(arguments), names)


# --- adapters of another base ---


def adapter_for(place: Place, base: str, with_identity: bool) -> Path:
    from gguflora.gguf import Adapter, identity_of

    opened = open_gguf(place.folder / base)
    adapter = random_adapter(opened)
    identity = identity_of(opened) if with_identity else None
    path = place.folder / "adapter.gguf"
    write_adapter(path, Adapter(adapter.architecture, adapter.alpha, adapter.pairs, identity))
    return path


@pytest.mark.parametrize("what", ["eval", "generate"])
def test_an_adapter_of_another_base_is_refused(place: Place, capsys: pytest.CaptureFixture[str], what: str):
    """Same architecture, same shapes: only the identity of the base tells."""
    adapter = adapter_for(place, "other.gguf", with_identity=True)
    arguments = [what, place.model, place.data if what == "eval" else "text", "--lora", adapter]
    assert_refused(place, capsys, 2, arguments, ("adapter.gguf", "another base", "tiny.gguf"))


@pytest.mark.parametrize("what", ["eval", "generate"])
def test_an_adapter_without_identity_is_judged_by_its_shapes(
    place: Place, capsys: pytest.CaptureFixture[str], what: str
):
    adapter = adapter_for(place, "larger.gguf", with_identity=False)
    arguments = [what, place.model, place.data if what == "eval" else "text", "--lora", adapter]
    assert_refused(place, capsys, 2, arguments, ("adapter.gguf", "blk.0.ffn_"))


# --- the output folder ---


def holding_files(place: Place) -> Path:
    place.out.mkdir()
    place.file("out/notes.txt", "mine")
    return place.out


def holding_a_run(place: Place) -> Path:
    assert command("train", place.model, place.data, "--output-dir", place.out, "--max-steps", "1") == 0
    return place.out


FOLDERS: dict[str, tuple[Callable[[Place], Path], tuple[str, ...]]] = {
    "a file": (lambda p: p.data, ("data.jsonl", "is a file")),
    "below a file": (lambda p: p.data / "out", ("data.jsonl", "is a file")),
    "below a device": (lambda _: Path("/dev/null/out"), ("/dev/null",)),
    "where nothing can be made": (lambda _: Path("/proc/out"), ("/proc/out",)),
    "a folder that holds files": (holding_files, ("out", "is not empty")),
    "a folder that holds a run": (holding_a_run, ("out", "holds a finished run on tiny")),
    "a name that is too long": (lambda p: p.folder / ("x" * 256), ("xxx", "too long")),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_an_output_folder_that_can_not_be_used(place: Place, capsys: pytest.CaptureFixture[str], case: str):
    prepare, names = FOLDERS[case]
    folder = prepare(place)
    assert_refused(place, capsys, 2, ["train", place.model, place.data, "--output-dir", folder], names)


def test_resume_needs_a_run_in_the_folder(place: Place, capsys: pytest.CaptureFixture[str]):
    arguments = ["train", place.model, place.data, "--output-dir", holding_files(place), "--resume"]
    assert_refused(place, capsys, 2, arguments, ("out", "run.json"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 5}', "[" * 100_000, "\xff"])
def test_resume_with_a_damaged_record(place: Place, capsys: pytest.CaptureFixture[str], content: str):
    place.out.mkdir()
    place.file("out/run.json", content.encode("latin-1"))
    place.file("out/.lock", "")
    arguments = ["train", place.model, place.data, "--output-dir", place.out]
    assert_refused(place, capsys, 2, arguments, ("out", "holds a run"))
    assert command(*arguments, "--resume") == 2
    assert "run.json is damaged" in capsys.readouterr().err


# --- numbers, and what is missing on the machine ---


def test_a_learning_rate_without_sense_ends_with_exit_code_5_and_what_was_good(
    place: Place, capsys: pytest.CaptureFixture[str]
):
    arguments = ["train", place.model, place.data, "--output-dir", place.out, "--learning-rate", "1e4"]
    assert command(*arguments, "--schedule", "constant", "--epochs", "30", "--max-grad-norm", "1e9") == 5
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "--learning-rate" in error
    assert "Traceback" not in error
    assert list(place.out.glob("checkpoint-step-*.gguf"))
    for adapter in place.out.glob("*.gguf"):
        assert open_gguf(adapter)  # each is whole


def test_generate_without_llamacpp_gives_the_command_that_installs_it(place: Place):
    """A real process in which the package is not installed."""
    absent = (
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'xllamacpp': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from gguflora.cli import main; main()"
    )
    done = run([sys.executable, "-c", absent], "generate", place.model, "text")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'gguflora[llamacpp]'" in done.stderr
    assert done.stderr.count("\n") == 1


def run(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60, env=environment
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "absent.gguf", "data.jsonl", "--output-dir", "out"], ("absent.gguf",)),
        (["train", "tiny.gguf", "data.jsonl", "--output-dir", "out", "--rnk", "3"], ("--rnk", "--rank")),
        (["tokenize", "data.jsonl", "text"], ("data.jsonl",)),
    ],
)
def test_the_same_as_real_processes(place: Place, arguments: list[str], names: tuple[str, ...]):
    before = sorted(place.folder.rglob("*"))
    done = run(COMMAND, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gguflora: ")
    assert done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in names)
    assert sorted(place.folder.rglob("*")) == before


def test_a_bug_of_ours_is_told_apart_and_its_traceback_goes_to_a_file(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken(_: object) -> None:
        raise RuntimeError("\x1b[31mthe cause")

    monkeypatch.setattr("gguflora.tokenizer.load_tokenizer", broken)
    monkeypatch.setenv("TMPDIR", str(place.folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert command("tokenize", place.model, "text") == 1
    error = capsys.readouterr().err
    assert error.startswith("gguflora: a bug in gguflora (RuntimeError: \\x1b[31mthe cause)")
    assert error.count("\n") == 1
    [log] = place.folder.glob("gguflora-*.log")
    assert str(log) in error
    assert "in broken" in log.read_text()
