"""How far encoding is, shown where it takes long and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gguflora.report import EncodingProgress


class Clock:
    """Seconds, as a test sets them."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(terminal: bool, seconds: float, count: int = 100) -> str:
    """What is written while `count` examples take so many seconds each, the last one left out."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    clock = Clock()
    with EncodingProgress(console, clock) as progress:
        clock.now += 50  # the model is loaded meanwhile
        for done in range(1, count):
            clock.now += seconds
            progress(done, count)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_less_than_a_second_is_not_shown(terminal: bool):
    assert shown(terminal, 0.005) == ""


def test_a_line_now_and_then_where_there_is_no_terminal():
    assert shown(False, 0.5).splitlines() == [
        "encoding: 21 of 100 examples, about 38 s left",
        "encoding: 41 of 100 examples, about 29 s left",
        "encoding: 61 of 100 examples, about 19 s left",
        "encoding: 81 of 100 examples, about 9 s left",
    ]


def test_a_bar_on_a_terminal_is_gone_at_the_end():
    text = shown(True, 0.02)
    assert "encoding" in text
    assert "96 of 100 examples" in text
    assert text.endswith("\x1b[2K")  # its line is erased


def test_the_next_examples_begin_anew():
    """Validation examples follow those that are trained: what these took is not counted for them."""
    console = Console(file=io.StringIO(), width=100)
    clock = Clock()
    with EncodingProgress(console, clock) as progress:
        for count, seconds in ((30, 0.1), (30, 0.5)):
            for done in range(1, count + 1):
                clock.now += seconds
                progress(done, count)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "encoding: 21 of 30 examples, about 4 s left\n"
