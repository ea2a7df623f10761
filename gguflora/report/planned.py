"""What a run would take: a record, which is the JSON of `plan`, and the lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gguflora.report.console import duration
from gguflora.report.text import harmless

_INDENT = 12  # characters before a line's text
_MEANINGS = {
    "process": "Python, torch, compiled operations, the tokenizer",
    "weights": "the base's matrices, unpacked",
    "adapter": "the pairs and their gradients",
    "optimiser": "AdamW's two moments of each value",
    "saved activations": "what layers keep for their backward",
    "workspace": "buffers that all layers share",
    "attention": "what attention to a document works in",
    "head": "logits of a chunk of rows, and their states",
    "temporaries": "what torch's own operations write and drop",
    "scratch": "a packed matrix at its use, and what libraries keep",
}


@dataclass(frozen=True)
class MachineFacts:
    """Memory in bytes, as run.machine.Memory has it.

    Attributes:
        reach: what this process could have now, and whose limit that is.
    """

    total: int
    available: int | None
    cgroup: int | None
    cgroup_used: int | None
    address_space: int | None
    data: int | None
    reach: int
    whose: str


@dataclass(frozen=True)
class TimeFacts:
    """The time of a run, from its first steps.

    Attributes:
        steps: that were timed, `tokens` and `seconds` together.
        warmed_up: a step was done before them.
        run_seconds: of `total_steps` with `run_tokens`, at the same seconds a token; without measuring and saving.
        peak: resident memory at its most, in bytes, the model's pages included.
        shortened: memory ran out, and rows were shortened.
    """

    steps: int
    warmed_up: bool
    tokens: int
    seconds: float
    total_steps: int
    run_tokens: int
    run_seconds: float
    peak: int
    shortened: bool


@dataclass(frozen=True)
class PlanFacts:
    """A run as it is planned.

    Attributes:
        choices: each with its reason.
        row: tokens of the longest row; longest: of the longest example; from_data: read from data, else assumed.
        parts: bytes at the peak; none for the reference, which has no plan.
        mapped: bytes of the model's file that are read through its map.
    """

    model: str
    architecture: str
    parameters: int
    path: str
    file_bytes: int
    choices: Mapping[str, str]
    row: int
    longest: int
    from_data: bool
    parts: Mapping[str, int]
    mapped: int
    machine: MachineFacts
    time: TimeFacts | None

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def as_json(facts: PlanFacts) -> dict[str, Any]:
    """The facts as plain data; memory in bytes, time in seconds."""
    return asdict(facts) | {"peak": facts.peak, "fits": facts.peak <= facts.machine.reach}


def lines_of(facts: PlanFacts) -> Iterator[str]:
    """The lines for a person, without markup."""
    parameters = f"{facts.parameters / 1e6:.0f}M parameters"
    yield from _section("Model", [f"{facts.model} ({facts.architecture}, {parameters})", facts.path])
    yield from _section("Chosen", [f"{name:<12}{value}" for name, value in facts.choices.items()])
    yield from _section("Memory", _memory(facts))
    yield from _section("Machine", _machine(facts))
    yield from _section("Time", _time(facts))


def _section(title: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{title if number == 0 else '':<{_INDENT}}{harmless(line)}"


def _memory(facts: PlanFacts) -> list[str]:
    if not facts.parts:
        return ["not planned: autograd keeps what it wants"]
    what = "the data's longest" if facts.from_data else "assumed"
    lines = [f"at the peak, with rows of {facts.row} tokens and examples of up to {facts.longest} ({what})"]
    lines += [f"{name:<20}{_mb(size)}  {_MEANINGS[name]}" for name, size in facts.parts.items()]
    lines.append(f"{'peak':<20}{_mb(facts.peak)}")
    lines.append(f"{'mapped':<20}{_mb(facts.mapped)}  of the file besides, which the system takes back when it must")
    return lines


def _machine(facts: PlanFacts) -> list[str]:
    machine = facts.machine
    limits = {"cgroup": machine.cgroup, "RLIMIT_AS": machine.address_space, "RLIMIT_DATA": machine.data}
    stated = ", ".join(f"{name} {'no limit' if size is None else _gb(size)}" for name, size in limits.items())
    available = "" if machine.available is None else f", {_gb(machine.available)} available"
    lines = [f"{_gb(machine.total)} in all{available}; {stated}"]
    if facts.parts:
        verdict = "it fits" if facts.peak <= machine.reach else "IT DOES NOT FIT: give --memory, or free some"
        lines.append(f"this process could have {_gb(machine.reach)} now ({machine.whose}): {verdict}")
    return lines


def _time(facts: PlanFacts) -> list[str]:
    time = facts.time
    if time is None:
        return ["not measured" if facts.from_data else "not measured: no data"]
    how = "after one to warm up" if time.warmed_up else "the first among them"
    lines = [
        f"about {duration(time.run_seconds)} for {time.total_steps} steps, {time.run_tokens} tokens; "
        "validation and saving come on top",
        f"measured on {time.steps} of its steps, {how}: {time.tokens} tokens in {time.seconds:.1f} s, "
        f"{time.tokens / time.seconds:.0f} tok/s",
        f"the process had {_gb(time.peak)} at its peak, pages of files included",
    ]
    return lines + (["memory ran out in them, and rows were shortened"] if time.shortened else [])


def _mb(size: int) -> str:
    return f"{size / 1e6:>8.0f} MB"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
