"""A skip that is not expected fails the session, and expected ones are counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import LIST, PLUGIN, ExpectedSkip, is_expected, read_list

ROOT = Path(__file__).parents[1]

CONFTEST = """
from tests.skips import SkipWatch, read_list

def pytest_configure(config):
    config.pluginmanager.register(SkipWatch(read_list("test_some.py | no file here: *")))
"""
TESTS = {
    "expected": "def test_skips():\n    pytest.skip('no file here: a')\n",
    "unexpected": "def test_skips():\n    pytest.skip('not today')\n",
    "never run": "@pytest.mark.skip(reason='not today')\ndef test_skips():\n    pass\n",
    "a whole file": "pytest.importorskip('no_such_package_at_all', reason='not today')\n",
    "a failure that is expected": "@pytest.mark.xfail\ndef test_fails():\n    assert False\n",
    "none": "",
}
PASSES = "import pytest\n\ndef test_passes():\n    pass\n\n"
ANOTHER = "test_another.py"


def run_tests(folder: Path, what: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_some.py").write_text(f"{PASSES}{TESTS[what]}")
    (folder / ANOTHER).write_text(PASSES)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("expected", 0, "1 skips, 1 of them expected"),
        ("unexpected", 1, "not expected: test_some.py::test_skips | not today"),
        ("never run", 1, "not expected: test_some.py::test_skips | not today"),
        ("a whole file", 1, "not expected: test_some.py | not today"),
        ("a failure that is expected", 0, "1 xfailed"),
        ("none", 0, "2 passed"),
    ],
)
def test_what_is_not_expected_fails_the_session(tmp_path: Path, what: str, code: int, said: str):
    done = run_tests(tmp_path, what)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr


@pytest.mark.parametrize("options", [["-k", "passes"], [ANOTHER]])
def test_a_part_of_the_tests_is_no_failure(tmp_path: Path, options: list[str]):
    """The expected skip does not happen then."""
    assert run_tests(tmp_path, "expected", *options).returncode == 0


def test_a_session_that_fails_keeps_its_own_exit_code(tmp_path: Path):
    assert run_tests(tmp_path, "unexpected", "-k", "nothing").returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_list_is_watched_in_this_very_session_and_its_files_exist(request: pytest.FixtureRequest):
    assert request.config.pluginmanager.has_plugin(PLUGIN)
    expected = read_list(LIST.read_text())
    assert len(expected) == len(set(expected)) > 5
    for one in expected:
        assert (ROOT / one.place.partition("::")[0]).is_file(), one.place


def test_a_place_is_a_file_or_a_test_with_all_its_parameters():
    expected = [ExpectedSkip("tests/a.py::test_b", "no * [1].")]
    for test in ("tests/a.py::test_b", "tests/a.py::test_b[x-1]"):
        assert is_expected(test, "no file [1].", expected)
    for test in ("tests/a.py", "tests/a.py::test_bc", "tests/b.py::test_b"):
        assert not is_expected(test, "no file [1].", expected)
    assert not is_expected("tests/a.py::test_b", "no file 1", expected)
    assert is_expected("tests/a.py::test_b[x]", "no", [ExpectedSkip("tests/a.py", "no")])


@pytest.mark.parametrize("line", ["tests/a.py", "tests/a.py | ", " | why", "tests/a.py|why"])
def test_a_line_that_says_nothing_is_an_error(line: str):
    with pytest.raises(ValueError, match="line 2"):
        read_list(f"# a comment\n{line}\n")
