"""What a person sees is complete, honest, and can't be taken over by text from outside."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import re
import shlex
import typing
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from gguflora.events import (
    Answer,
    Compiling,
    DataReady,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    FirstBatch,
    FirstExample,
    Halved,
    MemoryPlanned,
    ModelLoaded,
    Planned,
    Resumed,
    Saved,
    StepDone,
    Verified,
    Warned,
)
from gguflora.report import ConsoleReport
from gguflora.report.console import duration, next_steps, step_line

STEP = StepDone(
    step=1,
    total_steps=20,
    epoch=1,
    loss=2.34567,
    learning_rate=1.5e-4,
    gradient_norm=0.98765,
    tokens=300,
    tokens_per_second=1234.4,
    seconds_left=125.0,
    memory=900 * 10**6,
)
MODEL = ModelLoaded("m.gguf", "Smol", "llama", 134_515_008, 91_000_000, {"Q4_1": 210, "F32": 61}, "ab" * 32, "cd" * 32)
DATA = DataReady(
    384,
    40,
    "10 % split off, at most 200",
    {"weight 0": 2},
    {"weight 0": ["d.jsonl:3", "d.jsonl:9"]},
    29568,
    15000,
    (60, 77, 90),
)
EXAMPLE = FirstExample(
    "d.jsonl:1", [("<|im_start|>user\nHi<|im_end|>\n", False), ("Hello<|im_end|>", True), ("\n", False)]
)
MEMORY = MemoryPlanned({"process": 250 * 10**6, "weights": 245 * 10**6}, 20_000 * 10**6, 91 * 10**6)
PLAN = Planned({"attn_q": 30, "ffn_up": 30}, 4_884_480, 16, 32.0, 288, 96, 9, {"threads": "2 (as asked)"})
CHECK = Verified(1234, 2.5, 2.51, 0.5, 0.505, True, 0.02, True)
ANSWER = Answer("user\nHi", "Hello", "I don't know", "Hello")
END = Finished(
    288, 125.4, 0.4, 0.3, 2, "run/best_adapter_epoch_2.gguf", 288, 435.4, 705.0, "run/best_adapter_epoch_2.gguf"
)
EVENTS: list[Event] = [
    MODEL,
    MEMORY,
    DATA,
    EXAMPLE,
    PLAN,
    Warned("the template is odd"),
    Resumed(96, False),
    Resumed(288, True),
    Evaluated(0, 0, 2.5, 1234, False),
    STEP,
    FirstBatch(4, 2, 436, 2.5, 900 * 10**6),
    Halved(7, 512, False, "can't allocate memory"),
    Halved(8, 256, True, "can't allocate memory"),
    EpochDone(96, 1, 1.5),
    Evaluated(96, 1, 1.25, 1234, True),
    Evaluated(100, 2, 1.3, 1234, False),
    Saved(96, "best", "run/best_adapter_epoch_1.gguf"),
    CHECK,
    dataclasses.replace(CHECK, agrees=False, restored=False),
    ANSWER,
    END,
    dataclasses.replace(END, stopped_by="SIGTERM", final_loss=None, best_loss=None, adapter=None),
    Compiling(20, True),
    Compiling(20, False),
]


def shown(*events: Event, logging_steps: int = 10, width: int = 120, **console: typing.Any) -> str:
    """What a report prints for `events`; without a terminal unless `console` says otherwise."""
    file = io.StringIO()
    with ConsoleReport(Console(file=file, width=width, highlight=False, **console), logging_steps) as report:
        for event in events:
            report.show(event)
    return file.getvalue()


def steps(count: int, total: int | None = None) -> list[Event]:
    return [dataclasses.replace(STEP, step=n, total_steps=total or count) for n in range(1, count + 1)]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_each_event_says_something(event: Event):
    text = shown(event)
    assert len(text.strip()) > 10
    assert text.endswith("\n")
    assert "object at 0x" not in text
    assert type(event).__name__ + "(" not in text, "no event is shown as Python sees it"


def test_no_kind_of_event_is_left_out_here():
    assert {type(event) for event in EVENTS} == set(typing.get_args(Event))


WANTED: list[tuple[Event, str]] = [
    (MODEL, "Smol; llama; 135M parameters; 210 Q4_1; 61 F32; weights abababab; template cdcdcdcd; 91 MB"),
    (DATA, "384 examples; 40 to validate; 10 % split off; 29568 tokens; 51% of them trained; 60 to 90; median 77"),
    (DATA, "skipped 2: weight 0 (d.jsonl:3, d.jsonl:9)"),
    (EXAMPLE, "d.jsonl:1, as the model sees it"),
    (PLAN, "60 pairs (30 attn_q, 30 ffn_up); rank 16; alpha 32; 4.9M trainable; 288 steps; 96 an epoch; 9 of warm-up"),
    (PLAN, "threads: 2 (as asked)"),
    (MEMORY, "about 495 MB at the peak, of 20000 in reach; process 250; weights 245; and 91 of the file's pages"),
    (EVENTS[10], "4 examples in 2 rows; 436 tokens; loss 2.5000; 900 MB; nothing was trained"),
    (EVENTS[11], "memory ran out after step 7; at most 512 tokens; done again"),
    (EVENTS[12], "layers are computed again; done again"),
    (Compiling(20, True), "compiling operations; once for this machine; about 20 s"),
    (Compiling(20, False), "compiling operations; about 20 s; at each run; NUMBA_CACHE_DIR"),
    (CHECK, "verified in llama.cpp; 1234 trained tokens; 2.5000 / 2.5100; 0.5000 / 0.5050; up to 0.0200; to the bit"),
    (ANSWER, "Hi; expected  Hello; before    I don't know; after     Hello"),
    (END, "total time 2 min 05 s; 288 steps; 435 ms a step; 705 tok/s; final loss 0.4000; best loss 0.3000 (epoch 2)"),
    (END, "adapter run/best_adapter_epoch_2.gguf"),
]


@pytest.mark.parametrize(("event", "parts"), WANTED)
def test_the_parts_hold_what_a_person_needs(event: Event, parts: str):
    for part in parts.split("; "):
        assert part in shown(event)


def test_a_check_that_failed_says_so():
    assert "NOT verified" not in shown(CHECK)
    text = shown(dataclasses.replace(CHECK, agrees=False, restored=False))
    assert "NOT verified" in text
    assert "did NOT come back" in text


def test_the_live_line_has_loss_validation_rate_norm_speed_memory_and_time():
    assert step_line(STEP, 1.5) == (
        "step 1/20  epoch 1  loss 2.3457  validation 1.5000  lr 1.50e-04  gradient norm 0.988  "
        "1234 tok/s  900 MB  2 min 05 s left"
    )
    assert "validation" not in step_line(STEP, None)


def test_the_trained_part_is_marked_without_colours_too():
    text = shown(EXAMPLE)
    assert "\x1b" not in text
    assert "<|im_start|>user\nHi<|im_end|>\n⟦Hello<|im_end|>⟧" in text


def test_a_long_example_is_cut():
    text = shown(FirstExample("d.jsonl:1", [("a" * 10_000, False), ("b", True)]))
    assert len(text) < 1000
    assert "a ..." in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7830, "2 h 10 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations_in_words(seconds: float, words: str):
    assert duration(seconds) == words


# --- without a terminal ---


def step_numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^step (\d+)/", text, re.MULTILINE)]


@pytest.mark.parametrize(
    ("every", "expected"), [(10, [1, 10, 20, 25]), (1, list(range(1, 26))), (7, [1, 7, 14, 21, 25]), (100, [1, 25])]
)
def test_plain_lines_every_logging_steps_and_the_first_and_last(every: int, expected: list[int]):
    assert step_numbers(shown(*steps(25), logging_steps=every)) == expected


def test_plain_lines_hold_no_escapes_whatever_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("TERM", "xterm-256color"), ("COLORTERM", "truecolor")):
        monkeypatch.setenv(name, value)
    assert "\x1b" not in shown(*EVENTS, *steps(25))


def test_the_time_of_the_whole_is_told_once_it_was_measured():
    """After three steps of this process, whatever their numbers: a resumed run starts anywhere."""
    line = "about 2 min 05 s of training left, as the first steps went"
    assert line not in shown(*steps(2, total=20))
    assert shown(*steps(20, total=20)).count(line) == 1
    resumed = [dataclasses.replace(STEP, step=n) for n in range(11, 21)]
    assert shown(*resumed).count(line) == 1
    assert line not in shown(*steps(3)), "nothing is left to be told about"


def test_a_narrow_console_loses_nothing():
    """Not cut to 20 columns, since a file has no columns: a wide terminal, grep and CI show it whole."""
    assert shown(*EVENTS, width=20) == shown(*EVENTS, width=200)


# --- text from outside ---

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "[red]danger[/red]",
    "[/]",
    "[bold",
    "[link=https://example.com]x[/link]",
    "back\\",
    "\\[red]",
    "\r overwritten",
    "\u202e reversed",
    ":heart: :smile:",
    "\x00\x7f\x08",
]


def with_text(text: str) -> list[Event]:
    return [
        dataclasses.replace(MODEL, path=text, name=text),
        dataclasses.replace(DATA, skipped={text: 1}, skipped_examples={text: [text]}),
        FirstExample(text, [(text, False), (text, True), (text, False)]),
        dataclasses.replace(PLAN, choices={"threads": text}),
        Warned(text),
        Saved(1, "step", text),
        Answer(text, text, text, text),
        dataclasses.replace(END, adapter=text),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_is_shown_as_it_is_and_does_nothing(text: str):
    visible = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    for event in with_text(text):
        plain = shown(event)
        assert visible.strip() in plain, event
        assert not [c for c in plain if not (c.isprintable() or c == "\n")]
        coloured = shown(event, force_terminal=True, color_system="standard")
        assert set(re.findall(r"\x1b[^m]*m", coloured)) <= {"\x1b[0m", "\x1b[1m", "\x1b[7m", "\x1b[32m", "\x1b[33m"}
        assert re.sub(r"\x1b\[\d*m", "", coloured) == plain


def test_line_breaks_in_an_answer_stay_inside_it():
    text = shown(Answer("a\nb", "c\nd", "e\nf", "g\nh"))
    assert [line[:10].strip() for line in text.splitlines()] == [
        "Asked", "", "expected", "", "before", "", "after", "",
    ]  # fmt: skip


# --- on a terminal ---


def screen(output: str, columns: int) -> list[str]:
    """The lines that a terminal of `columns` shows: the few codes that rich uses, by ECMA-48."""
    lines, row, column = [""], 0, 0
    for code, char in re.findall(r"(\x1b\[[\d;?]*[A-Za-z])|(.)", output, re.DOTALL):
        if code.endswith("A"):
            row -= int(code[2:-1])
        elif code.endswith("K"):
            assert code == "\x1b[2K", code
            lines[row] = ""
        elif code:
            assert code[-1] in "mhl", code
        elif char == "\n":
            row, column = row + 1, 0
        elif char == "\r":
            column = 0
        else:
            if column == columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append("")
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
        while len(lines) <= row:
            lines.append("")
    return [line.rstrip() for line in lines]


def on_terminal(events: list[Event], columns: int = 200, **environment: str) -> str:
    return shown(*events, width=columns, force_terminal=True, _environ={"TERM": "xterm", **environment})


SEQUENCE: list[Event] = [
    Evaluated(0, 0, 2.5, 1234, False),
    *steps(2, total=4),
    EpochDone(2, 1, 1.5),
    Evaluated(2, 1, 1.25, 1234, True),
    Saved(2, "best", "run/best_adapter_epoch_1.gguf"),
    *steps(4)[2:],
    EpochDone(4, 2, 1.0),
    Saved(4, "final", "run/final_adapter.gguf"),
    CHECK,
    END,
]


def test_on_a_terminal_one_live_line_stays_below_and_nothing_overwrites_another():
    lines = [line for line in screen(on_terminal(SEQUENCE), 200) if line]
    starts = [" ".join(line.split()[:3]) for line in lines]
    assert starts[:8] == [
        "validation loss before",
        "epoch 1 done:",
        "validation loss 1.2500",
        "saved run/best_adapter_epoch_1.gguf",
        "about 2 min",
        "epoch 2 done:",
        "saved run/final_adapter.gguf",
        "step 4/4 epoch",
    ]
    assert starts[8] == "Check verified in"
    everything = "\n".join(lines)
    for event in SEQUENCE:
        if not isinstance(event, StepDone):
            for line in shown(event).splitlines():
                assert line.rstrip() in everything, line


def test_a_terminal_of_20_columns_keeps_the_live_line_on_one_row():
    lines = screen(on_terminal(steps(30), columns=20), 20)
    assert len([line for line in lines if line.startswith("step ")]) == 1
    assert next(line for line in lines if line.startswith("step ")).endswith("…")


def test_no_color_has_no_colours():
    output = on_terminal(EVENTS, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3\dm", output)
    assert "⟦" in output


def test_a_dumb_terminal_gets_plain_lines():
    output = shown(*steps(25), force_terminal=True, _environ={"TERM": "dumb"})
    assert "\x1b[1A" not in output


def test_the_live_line_ends_when_the_run_fails():
    """The error comes on a line of its own, and the cursor is back."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(RuntimeError), ConsoleReport(console, 10) as report:
        report.show(STEP)
        raise RuntimeError
    console.print("the error")
    lines = [line for line in screen(file.getvalue(), 100) if line]
    assert lines[0].startswith("step 1/20")
    assert lines[1] == "the error"
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_a_real_terminal_is_recognised():
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as file:
        console = Console(file=file, width=80, _environ={"TERM": "xterm"})
        with ConsoleReport(console, 1) as report:
            for event in steps(3):
                report.show(event)
    output = os.read(parent, 100_000).decode()
    os.close(parent)
    assert len([line for line in screen(output, 80) if line.startswith("step ")]) == 1


# --- what to do next ---


def test_next_steps_name_the_files_that_are_there_and_commands_ready_to_paste(tmp_path: Path):
    run = tmp_path / "my run"
    (run / "state").mkdir(parents=True)
    names = ["best_adapter_epoch_2.gguf", "final_adapter.gguf", "metrics.jsonl", "run.json"]
    names += [f"checkpoint-step-{n}.gguf" for n in range(1, 6)]
    for name in names:
        (run / name).touch()
    finished = dataclasses.replace(END, adapter=str(run / "best_adapter_epoch_2.gguf"))
    text = "\n".join(next_steps(Path("a model.gguf"), [Path("d.jsonl"), Path("e $x.jsonl")], finished))
    assert (
        "checkpoint-step-1.gguf, checkpoint-step-2.gguf, checkpoint-step-3.gguf and 2 more: adapters on the way" in text
    )
    for name in (*names[:4], "state"):
        assert f"          {name}: " in text or f" {name}" in text
    command = [line for line in text.splitlines() if "llama-server" in line]
    assert [shlex.split(line) for line in command] == [
        ["llama-server", "-m", "a model.gguf", "--lora", str(run / "best_adapter_epoch_2.gguf")]
    ]
    [evaluate] = [line for line in text.splitlines() if "gguflora eval" in line]
    assert shlex.split(evaluate)[2:5] == ["a model.gguf", "d.jsonl", "e $x.jsonl"]


def test_next_steps_keep_the_options_of_the_template():
    """Trained one way and served another, an adapter is worth less."""
    finished = dataclasses.replace(END, adapter="run/final_adapter.gguf")
    serve, own = "--chat-template-kwargs '{\"a\":[1]}'", "--template-option 'a=[1]'"
    lines = next_steps(Path("m.gguf"), [Path("d")], finished, serve=serve, own=own)
    text = "\n".join(Text.from_markup(line).plain for line in lines)
    commands = [shlex.split(line) for line in text.splitlines() if "--lora" in line]
    assert [command[-2:] for command in commands[:1]] == [["--chat-template-kwargs", '{"a":[1]}']]
    assert all(
        "--template-option 'a=[1]'" in line for line in text.splitlines() if "gguflora" in line and "--lora" in line
    )


def test_what_is_not_trained_as_it_stands_is_counted():
    changed = {"the end was cut off": 7}
    event = dataclasses.replace(DATA, altered=changed, altered_examples={"the end was cut off": ["d.jsonl:4"]})
    assert "changed 7: the end was cut off (d.jsonl:4)" in shown(event)


def test_after_a_stop_the_next_step_is_resume():
    stopped = dataclasses.replace(END, stopped_by="SIGINT")
    assert next_steps(Path("m"), [Path("d")], stopped) == ["", "Go on with the same command and --resume."]


def test_without_a_folder_there_is_nothing_to_do_next():
    assert next_steps(Path("m"), [Path("d")], dataclasses.replace(END, adapter=None)) == []
