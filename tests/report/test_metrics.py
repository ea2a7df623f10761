"""metrics.jsonl has every event, each step once, and can be read by any program that reads JSON lines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gguflora.errors import MachineError
from gguflora.events import Answer, Evaluated, Event, Finished, Saved, StepDone, Warned, as_dict
from gguflora.report import append_metrics, keep_metrics_until

STEP = StepDone(1, 9, 1, 2.5, 1e-4, 0.5, 300, 1234.5, 10.0, 2**30)


def step(number: int) -> StepDone:
    return dataclasses.replace(STEP, step=number)


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "metrics.jsonl").read_bytes().decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def record(folder: Path, *events: Event) -> None:
    for event in events:
        append_metrics(folder, event)


def test_an_event_is_one_line_with_its_kind_and_its_fields(tmp_path: Path):
    record(tmp_path, STEP)
    assert lines(tmp_path) == [
        {
            "event": "step_done",
            "step": 1,
            "total_steps": 9,
            "epoch": 1,
            "loss": 2.5,
            "learning_rate": 1e-4,
            "gradient_norm": 0.5,
            "tokens": 300,
            "tokens_per_second": 1234.5,
            "seconds_left": 10.0,
            "memory": 2**30,
        }
    ]


@pytest.mark.parametrize("text", ["a\nb", "\u2028\u2029\x85", "naïve 🙂 日本", "\x00\x1b[31m", '"quoted" \\', "\udce9"])
def test_any_text_is_one_line_and_comes_back(tmp_path: Path, text: str):
    """The last one stands for a byte of a file's name that is no UTF-8."""
    record(tmp_path, Answer(text, text, text, text), Warned(text))
    assert lines(tmp_path) == [as_dict(Answer(text, text, text, text)), as_dict(Warned(text))]
    keep_metrics_until(tmp_path, 5)
    assert len(lines(tmp_path)) == 2


def test_what_came_after_the_state_is_dropped(tmp_path: Path):
    """Events without a step (what was opened, what was warned about) stay: they happened."""
    events = [Warned("early"), Evaluated(0, 0, 3.0, 9, False), *map(step, range(1, 6)), Saved(4, "step", "p")]
    record(tmp_path, *events, Evaluated(5, 1, 2.0, 9, True))
    keep_metrics_until(tmp_path, 4)
    assert lines(tmp_path) == [as_dict(event) for event in (*events[:6], events[7])]


def test_from_step_0_everything_is_done_again(tmp_path: Path):
    record(tmp_path, Warned("early"), Evaluated(0, 0, 3.0, 9, False), step(1))
    keep_metrics_until(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_cut_is_dropped(tmp_path: Path, cut: int):
    record(tmp_path, step(1), step(2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    keep_metrics_until(tmp_path, 9)
    record(tmp_path, step(2))
    assert lines(tmp_path) == [as_dict(step(1)), as_dict(step(2))]


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"[1]\n", b"5\n", b"\n", b'"step"\n', b"{\n"])
def test_what_is_no_event_is_dropped_and_the_rest_stays(tmp_path: Path, junk: bytes):
    record(tmp_path, step(1))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(junk)
    record(tmp_path, step(2))
    keep_metrics_until(tmp_path, 9)
    assert lines(tmp_path) == [as_dict(step(1)), as_dict(step(2))]


def test_where_there_is_no_file_none_is_made(tmp_path: Path):
    keep_metrics_until(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_names_the_file(tmp_path: Path):
    with pytest.raises(MachineError, match=r"gone/metrics\.jsonl could not be written: No such file"):
        append_metrics(tmp_path / "gone", STEP)


def test_each_event_is_on_the_disk_when_the_next_begins(tmp_path: Path):
    """So that a kill loses no line that was shown."""
    for number in range(1, 4):
        record(tmp_path, step(number))
        assert len(lines(tmp_path)) == number


def test_numbers_that_are_absent_are_null(tmp_path: Path):
    record(tmp_path, Finished(0, 0.0, None, None, None, None, 0, 0.0, 0.0, None))
    assert lines(tmp_path)[0]["best_loss"] is None
