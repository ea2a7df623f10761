"""Run all parity tests and write what they measured to docs/parity.md.

    make parity, or: python -m tests.parity.report [arguments of pytest]

Nothing is written when a test fails. Each figure is the worst of its cases.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.parity.figures import PROPERTY, Figure

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "parity.md"
PACKAGES = ("gguflora", "torch", "xllamacpp", "transformers", "peft", "gguf")

HEAD = """\
# Parity

What gguflora computes beside what llama.cpp and PEFT compute, as the tests measured it. `make parity` runs them and
writes this page: each figure is the worst of its cases, and a test that fails leaves the page as it was. The bounds and
their reasons are in `tests/numerics.py` and in the tests; *deviation* is that of llama.cpp's logits.

- {date}; {machine}
- {versions}; llama.cpp computes with a float32 cache and without flash attention
- {passed} tests passed, {skipped} were skipped, {left_out} left out on request
"""


@dataclass
class Collector:
    """A pytest plugin: the figures of each test file, and how many tests came to what."""

    figures: dict[str, list[Figure]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    left_out: int = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.left_out += len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1
        if report.when == "call":
            found = [Figure(**value) for name, value in report.user_properties if name == PROPERTY]  # type: ignore[arg-type]
            self.figures.setdefault(report.nodeid.split("::")[0], []).extend(found)


def main(arguments: list[str]) -> int:
    collector = Collector()
    code = int(pytest.main(["tests/parity", "-m", "slow or not slow", "-q", *arguments], plugins=[collector]))
    if code == 0:
        REPORT.write_text(page(collector))
        print(f"wrote {REPORT}")
    return code


def page(collector: Collector) -> str:
    """The whole page."""
    head = HEAD.format(
        date=datetime.now(UTC).date(),
        machine=machine(),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        passed=collector.outcomes.get("passed", 0),
        skipped=collector.outcomes.get("skipped", 0),
        left_out=collector.left_out,
    )
    sections = (section(file, figures) for file, figures in sorted(collector.figures.items()) if figures)
    return "\n".join([head, *sections])


def section(file: str, figures: list[Figure]) -> str:
    """One file's figures as a table."""
    about = (ROOT / file).read_text().split('"""')[1].split("\n\n")[0].replace("\n", " ").strip()
    lines = [f"## {about}", "", f"`python -m pytest {file} -m 'slow or not slow' -rP`", ""]
    lines += ["| model | compared | measure | figure | bound |", "|---|---|---|---|---|"]
    for figure, cases in worst(figures):
        sign = ">=" if figure.at_least else "<="
        of = f"{figure.value:.1e}" + (f" (of {cases})" if cases > 1 else "")
        lines.append(f"| {figure.model} | {figure.compared} | {figure.measure} | {of} | {sign} {figure.bound:.0e} |")
    return "\n".join([*lines, ""])


def worst(figures: list[Figure]) -> Iterator[tuple[Figure, int]]:
    """Of figures that bear the same names the worst, and how many there are."""
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.model, figure.compared, figure.measure), []).append(figure)
    for group in groups.values():
        yield max(group, key=lambda figure: figure.value / figure.bound * (-1 if figure.at_least else 1)), len(group)


def machine() -> str:
    """Processor, cores and instruction set."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, {capability}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
