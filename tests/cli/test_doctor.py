"""`doctor` says in lines and in JSON what it found, and its exit code is what a script can go by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gguflora.run import doctor
from gguflora.run.doctor import Finding
from tests.runs import command

FINDINGS = {
    "well": [Finding("a", "pass", "1"), Finding("longer", "warn", "2\x1b[31m", "do this")],
    "installation": [Finding("a", "pass", "1"), Finding("b", "fail", "2", "do that", exit_code=2)],
    "machine": [Finding("a", "fail", "1", "do this"), Finding("b", "fail", "2", "do that", exit_code=2)],
}


@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        (
            "well",
            0,
            [
                "pass  a       1",
                "warn  longer  2\\x1b[31m",
                "              to do: do this",
                "Nothing is in the way.",
            ],
        ),
        ("installation", 2, ["pass  a  1", "fail  b  2", "         to do: do that", "1 failed: see what to do above."]),
        (
            "machine",
            4,
            [
                "fail  a  1",
                "         to do: do this",
                "fail  b  2",
                "         to do: do that",
                "2 failed: see what to do above.",
            ],
        ),
    ],
)
def test_a_line_for_each_finding_and_what_to_do_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, code: int, lines: list[str]
):
    monkeypatch.setattr(doctor, "examine", lambda: iter(FINDINGS[name]))
    assert command("doctor") == code
    assert capsys.readouterr().out.splitlines() == lines
    assert command("doctor", "--json") == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["exit_code"] == code
    assert found["findings"] == [
        {"name": each.name, "state": each.state, "found": each.found, "fix": each.fix} for each in FINDINGS[name]
    ]


def test_this_machine_can_run_these_tests(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is faked: versions, processor, memory, disk and the real llama.cpp."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = command("doctor")
    out = capsys.readouterr().out
    assert code == 0, out
    for name in ("python", "torch", "processor", "threads", "memory", "address space", "disk here", "cache"):
        assert re.search(rf"^(pass|warn)  {name} ", out, re.MULTILINE), out
    assert re.search(r"^pass  llama.cpp +xllamacpp \S+ loads$", out, re.MULTILINE), out
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
