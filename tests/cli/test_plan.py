"""`plan` says what `train` with the same options would take, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import command, tree, write_dataset
from tests.tiny import tiny_llama

SCREEN = 40  # lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data.jsonl", 12)


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert command("plan", *arguments, "--json") == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    facts: dict[str, Any] = json.loads(line)
    return facts


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert command("plan", *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_the_memory_is_what_train_says_with_the_same_options(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rank", 4, "--micro-batch-tokens", 64, "--weights", "packed", "--dtype", "float32"]
    facts = planned(capsys, model, data, *options, "--no-time")
    assert command("train", model, data, "--output-dir", tmp_path / "out", *options, "--dry-run", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [told] = [event for event in events if event["event"] == "memory_planned"]
    assert facts["parts"] == told["parts"]
    assert facts["mapped"] == told["mapped"]
    assert facts["peak"] == sum(facts["parts"].values())
    [plan] = [event for event in events if event["event"] == "planned"]
    assert facts["choices"].items() <= plan["choices"].items()


def test_the_adapter_takes_what_its_numbers_take(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """attn_q is 60 x 48 in each of 3 layers (tests/tiny.py); values, gradients, a copy and two moments are float32."""
    options = ["--target", "attn_q", "--rank", 2, "--dtype", "float32", "--no-time"]
    parts = planned(capsys, model, data, *options)["parts"]
    numbers = 3 * 2 * (60 + 48)
    assert parts["adapter"] == 3 * 4 * numbers
    assert parts["optimiser"] == 2 * 4 * numbers


def test_the_time_is_that_of_real_steps_and_nothing_is_written(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(data.parent)
    facts = planned(capsys, model, data, "--batch-size", 2, "--epochs", 2, "--time-steps", 2)
    time = facts["time"]
    assert time["steps"] == 2
    assert time["warmed_up"]
    assert time["total_steps"] == 12
    assert time["run_seconds"] == pytest.approx(time["run_tokens"] * time["seconds"] / time["tokens"])
    assert 0 < time["tokens"] < time["run_tokens"]
    assert time["peak"] > 10**8  # torch alone
    assert tree(data.parent) == before


def test_a_run_of_one_step_is_timed_by_it(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = planned(capsys, model, data, "--max-steps", 1)["time"]
    assert (time["steps"], time["warmed_up"], time["total_steps"]) == (1, False, 1)
    # The run's tokens are a third of an epoch's, the step's those of 4 of 12 examples, of 12 to 26 tokens.
    assert time["run_tokens"] == pytest.approx(time["tokens"], rel=0.5)


def test_without_data_there_is_the_memory_of_full_rows(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = planned(capsys, model, "--micro-batch-tokens", 300)
    assert (facts["row"], facts["longest"], facts["from_data"], facts["time"]) == (300, 300, False, None)
    larger = planned(capsys, model, "--micro-batch-tokens", 600)
    # All buffers have a row for each token, but for the attention's scores.
    for part in ("saved activations", "workspace"):
        assert larger["parts"][part] == 2 * facts["parts"][part]
    assert larger["parts"]["weights"] == facts["parts"]["weights"]


@pytest.mark.parametrize("options", [[], ["--no-time"], ["--kernels", "reference"], ["--packing", "off"]])
def test_people_see_it_on_one_screen(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert command("plan", model, data, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN
    titles = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert titles == ["Model", "Chosen", "Memory", "Machine", "Time"]


def test_memory_that_is_too_little_is_refused_with_what_would_do(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, model, data, "--memory", "100MB", "--no-time")
    assert "--memory 100MB is too little: the smallest setting" in said
    enough = said.split("give --memory ")[1].split()[0].rstrip(".\n")
    facts = planned(capsys, model, data, "--memory", enough, "--no-time")
    assert facts["peak"] <= int(enough.removesuffix("MB")) * 10**6


def test_what_can_not_be_planned_is_refused(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--memory" in refused(capsys, model, data, "--memory", "lots")
    assert "--kernels reference" in refused(capsys, model, data, "--memory", "1GB", "--kernels", "reference")
    assert "--time-steps" in refused(capsys, model, data, "--time-steps", -1)
    assert "Did you mean --memory?" in refused(capsys, model, data, "--memroy", "1GB")
