"""How data are read, on the command line: what is left out is counted and named, and the next command says the same."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gguflora.data import Encoded, EncodedStore, Example, StreamedExamples
from gguflora.run.tokens import Part
from gguflora.train import Measured, evaluate
from tests.runs import COMMAND, command
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three good rows under other names, and two bad ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\na,b\nc\nd,e\nf,g,h\ni,j\n")
    return path


COLUMNS = ["--column", "prompt=question", "--column", "completion=answer"]
SKIP = ["--on-bad-record", "skip"]


def test_bad_records_are_counted_and_the_first_named_with_their_causes(
    model: Path, table: Path, capsys: pytest.CaptureFixture[str]
):
    assert command("train", model, table, "--output-dir", "out", "--max-steps", "1", *COLUMNS, *SKIP) == 0
    told = capsys.readouterr().out
    assert "3 examples to train" in told
    [line] = [line for line in told.splitlines() if "skipped" in line]
    assert line.strip().startswith(f"skipped 2: bad record ({table}:3: the row has 1 cells and the first row names 2")
    assert f"{table}:5: the row has 3 cells" in line
    events = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    [ready] = [event for event in events if event["event"] == "data_ready"]
    assert ready["skipped"] == {"bad record": 2}
    assert len(ready["skipped_examples"]["bad record"]) == 2


def test_the_command_for_afterwards_reads_the_data_in_the_same_way(
    model: Path, table: Path, capsys: pytest.CaptureFixture[str]
):
    weight = ["--source-weight", f"{table}=0.5"]
    assert command("train", model, table, "--output-dir", "out", "--max-steps", "1", *COLUMNS, *SKIP, *weight) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "gguflora eval" in line]
    assert command(*line.split()[1:]) == 0
    told = capsys.readouterr().out
    assert "in 3 examples" in told
    assert "skipped 2: bad record" in told


def test_validation_is_read_in_the_same_way_but_for_the_weights(
    model: Path, table: Path, capsys: pytest.CaptureFixture[str]
):
    other = table.with_name("other.csv")
    other.write_text("question,answer\nx,y\nz\n")
    options = ["--max-steps", "1", *COLUMNS, *SKIP, "--source-weight", f"{table}=0.5", "--validation", other]
    assert command("train", model, table, "--output-dir", "out", *options) == 0
    told = capsys.readouterr().out
    assert "1 to validate on" in told or "1 validation" in told or "validate" in told
    assert "skipped 3: bad record" in told


def test_a_source_of_weight_0_is_left_out(model: Path, table: Path, capsys: pytest.CaptureFixture[str]):
    other = table.with_name("other.jsonl")
    other.write_text('{"prompt": "a", "completion": "b"}\n')
    options = [*COLUMNS, *SKIP, "--source-weight", "other.jsonl=0", "--json"]
    assert command("eval", model, table, "other.jsonl", *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 3
    assert result["skipped"] == {"weight 0": 1, "bad record": 2}


def test_large_data_are_measured_as_small_ones_are_and_not_held(
    model: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The same figures to the last bit; the tokens are in a file that leaves nothing behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(table.parent / "cache"))
    seen: list[type] = []
    whole = Part.whole

    def watched(examples: Iterable[Example]) -> Part:
        seen.append(type(examples))
        return whole(examples)

    def watched_too(decoder: Any, encoded: Sequence[Encoded], *others: Any) -> Measured:
        seen.append(type(encoded))
        return evaluate(decoder, encoded, *others)

    monkeypatch.setattr("gguflora.run.tokens.Part.whole", watched)
    monkeypatch.setattr("gguflora.run.measure.evaluate", watched_too)
    told = []
    for large in (2**30, 1):
        monkeypatch.setattr("gguflora.data.streamed.LARGE", large)
        monkeypatch.setattr("gguflora.run.tokens.MANY", large)
        assert command("eval", model, table, *COLUMNS, *SKIP, "--json") == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert json.loads(told[0])["skipped"] == {"bad record": 2}
    assert seen == [list, tuple, StreamedExamples, EncodedStore]
    assert not (table.parent / "cache/gguflora/tokens").exists()


@pytest.mark.parametrize("before", [[], ["data.jsonl"]])
def test_standard_input_is_a_hyphen_among_the_data(model: Path, tmp_path: Path, before: list[str]):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = subprocess.run(
        [*COMMAND, "eval", str(model), *before, "-", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=b'{"prompt": "c", "completion": "d"}\n',
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == len(before) + 1


def test_large_data_are_streamed_and_told_of_as_small_ones_are(
    model: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """They are gone through three times; what is wrong with a record is counted once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(table.parent / "cache"))
    told, options = [], ["--max-steps", "1", "--validation-split", "0.4", *COLUMNS, *SKIP]
    for out, large, cache in (("small", 2**30, "on"), ("large", 1, "off"), ("kept", 1, "on"), ("again", 1, "on")):
        monkeypatch.setattr("gguflora.data.streamed.LARGE", large)
        monkeypatch.setattr("gguflora.run.tokens.MANY", large)
        assert command("train", model, table, "--output-dir", out, "--token-cache", cache, *options) == 0
        capsys.readouterr()
        events = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
        told.append([event for event in events if event["event"] in ("data_ready", "first_example")])
        kept = list(Path("cache").glob("gguflora/tokens/*"))
        assert len(kept) == (2 if out in ("kept", "again") else 0)  # what is trained, and what is measured
    assert told[0] == told[1] == told[2] == told[3]
    assert told[0][0]["skipped"] == {"bad record": 2}
    assert (told[0][0]["train_examples"], told[0][0]["validation_examples"]) == (2, 1)
    adapters = [Path(out, "final_adapter.gguf").read_bytes() for out in ("small", "large", "kept", "again")]
    assert len(set(adapters)) == 1
