"""The page of figures says what the tests handed on, the worst of each name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import report
from tests.parity.figures import Figures
from tests.parity.report import Collector, main, page

FILE = "tests/parity/test_peft.py"


def reported(properties: list[tuple[str, object]], outcome: str = "passed") -> pytest.TestReport:
    return pytest.TestReport(f"{FILE}::one", (FILE, 1, "one"), {}, outcome, None, "call", user_properties=properties)  # type: ignore[arg-type]


@pytest.fixture
def collector() -> Collector:
    properties: list[tuple[str, object]] = [("of another kind", 1)]
    figures = Figures(lambda name, value: properties.append((name, value)))
    for value in (1e-11, 3e-11, 2e-11):
        figures.add("tiny", "logits", "KL", value, 1e-9)
    for times in (300.0, 150.0):
        figures.add("tiny", "a fault", "times the bound", times, 100, at_least=True)
    found = Collector()
    for _ in range(2):
        found.pytest_runtest_logreport(reported(properties))
    found.pytest_runtest_logreport(reported([], "skipped"))
    return found


def test_the_worst_of_each_name_stands_beside_its_bound(collector: Collector) -> None:
    lines = page(collector).splitlines()
    assert "| tiny | logits | KL | 3.0e-11 (of 6) | <= 1e-09 |" in lines
    assert "| tiny | a fault | times the bound | 1.5e+02 (of 4) | >= 1e+02 |" in lines
    assert "- 2 tests passed, 1 were skipped, 0 left out on request" in lines
    assert f"`python -m pytest {FILE} -m 'slow or not slow' -rP`" in lines


@pytest.mark.parametrize("code", [1, 2, 5])
def test_nothing_is_written_unless_all_tests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(report, "REPORT", tmp_path / "parity.md")
    monkeypatch.setattr(pytest, "main", lambda *_, **__: code)
    assert main([]) == code
    assert list(tmp_path.iterdir()) == []
