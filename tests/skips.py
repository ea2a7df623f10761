"""Skipped tests are counted, and a skip that tests/expected_skips.txt does not name fails the session.

A test that skips where it should not is as green as one that passes, and promises nothing. Expected skips need not
happen, so a run of some tests alone is no failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("expected_skips.txt")
PLUGIN = "expected skips"


@dataclass(frozen=True)
class ExpectedSkip:
    """Tests that may be skipped: of a file, or one id, all its parameters; `reason` may have * for any text."""

    place: str
    reason: str


def read_list(text: str) -> list[ExpectedSkip]:
    """The lines `place | reason`; # begins a comment line."""
    return list(_lines(text))


def _lines(text: str) -> Iterator[ExpectedSkip]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            place, bar, reason = line.partition(" | ")
            if not (place.strip() and bar and reason.strip()):
                raise ValueError(f"line {number} of the expected skips is not like `place | reason`: {line!r}")
            yield ExpectedSkip(place.strip(), reason.strip())


def is_expected(test: str, reason: str, expected: Sequence[ExpectedSkip]) -> bool:
    """Whether a skip is in the list."""
    return any(_is_at(test, one.place) and _fits(reason, one.reason) for one in expected)


def _is_at(test: str, place: str) -> bool:
    return test == place or test.startswith((f"{place}::", f"{place}["))


def _fits(reason: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), reason, re.DOTALL) is not None


class SkipWatch:
    """A plugin of pytest, whose hooks these are."""

    def __init__(self, expected: Sequence[ExpectedSkip]) -> None:
        self._expected = expected
        self._skipped = 0
        self._unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        self._skipped += 1
        if not is_expected(report.nodeid, reason, self._expected):
            self._unexpected.append(f"{report.nodeid} | {reason}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._skipped:
            return
        expected = self._skipped - len(self._unexpected)
        terminalreporter.write_line(f"{self._skipped} skips, {expected} of them expected ({LIST.name})")
        for line in self._unexpected:
            terminalreporter.write_line(f"not expected: {line}", red=True)
