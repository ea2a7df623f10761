"""What this machine has not compiled yet another process compiles, and whatever becomes of it is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numba
import pytest

from gguflora.kernels import first_use
from gguflora.kernels.first_use import CompilationError, NotCompiledError, compile_elsewhere, compiling_here
from gguflora.kernels.threads import libgomp

pytestmark = pytest.mark.skipif(libgomp() is None, reason="torch does not run on libgomp here: torch's version runs")

ROOT = Path(__file__).parents[2]
FEW = 250_000_000
"""Bytes of private memory that hold torch and numba with kernels from its cache (0.22 GB), and no compiler at work."""

SLEEPER = "import os, pathlib, time; pathlib.Path('{}').write_text(str(os.getpid())); time.sleep(600)"

FIRST_USE = """
import json, resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
import torch
from gguflora.kernels.operations import TORCH, choose_operations, missing

due = missing()
operations, why = choose_operations(torch.float32, "auto")
again = choose_operations(torch.bfloat16, "auto")[1]
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
told = {"due": due and due.kept, "still due": missing() is not None, "compiled": operations is not TORCH}
print(json.dumps(told | {"why": why, "again": again, "peak": int(status["VmHWM"].split()[0]) * 1024}))
"""


def use(cache: Path, limit: int = 0) -> dict[str, Any]:
    """A process that chooses its operations, with a numba cache of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE, str(limit)],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_first_use_takes_no_more_memory_than_the_second(tmp_path: Path) -> None:
    """What the compiler keeps, 120 MB, ended with its process. 20 MB: the two were within 1 MB in four runs."""
    first, second = use(tmp_path), use(tmp_path)
    assert (first["due"], second["due"]) == (True, None)
    for told in (first, second):
        assert told["compiled"]
        assert told["why"].startswith("by numba, on torch's threads")
    assert abs(first["peak"] - second["peak"]) < 20e6


def test_where_compiling_takes_more_memory_than_there_is_torchs_version_runs_and_it_is_said(tmp_path: Path) -> None:
    """It ends of itself, and soon: what it compiles first takes too much already."""
    told = use(tmp_path, FEW)
    assert told["due"] is True
    assert not told["compiled"]
    assert re.fullmatch(
        "compiled ones are missing: memory ran out, and the process that compiles "
        r"(was ended by SIG[A-Z]+|ended with status \d+)",
        told["why"],
    )
    assert (told["again"], told["still due"]) == (told["why"], False)  # it is not tried again


# --- how the other process may end ---


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the other process runs, in place of the compiler."""

    def run(code: str) -> None:
        (tmp_path / "other_process.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        compile_elsewhere("other_process")

    return run


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise ValueError('no such type')",
            "the process that compiles ended with status 1 (ValueError: no such type)",
        ),
        ("raise SystemExit(3)", "the process that compiles ended with status 3 (it said nothing)"),
        ("raise MemoryError", "memory ran out, and the process that compiles ended with status 1"),
        ("import os; os.kill(os.getpid(), 9)", "memory ran out, and the process that compiles was ended by SIGKILL"),
        ("import os; os.abort()", "the process that compiles was ended by SIGABRT (it said nothing)"),
        (
            "import os; os.write(2, b'LLVM ERROR: out of memory\\nBuffer allocation failed\\n'); os.abort()",
            "memory ran out, and the process that compiles was ended by SIGABRT",
        ),
    ],
)
def test_the_end_of_the_other_process_is_told_in_words(other: Any, code: str, words: str) -> None:
    with pytest.raises(CompilationError) as told:
        other(code)
    assert str(told.value) == words


def test_one_that_says_much_and_ends_well_is_done(other: Any) -> None:
    """More than a pipe holds, on both."""
    other("import sys; print('x' * 10**6); print('y' * 10**6, file=sys.stderr)")


def test_one_that_hangs_is_ended(other: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(first_use, "WALL_SECONDS", 2.0)
    with pytest.raises(CompilationError, match="it was not done after 2 s"):
        other(SLEEPER.format(tmp_path / "pid"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interrupt_ends_the_wait_and_the_process(other: Any, tmp_path: Path) -> None:
    """As Ctrl-C does; the process is in another session, so the terminal's signal is for us alone."""
    path = tmp_path / "pid"

    def interrupt() -> None:
        while not (path.exists() and path.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        other(SLEEPER.format(path))
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_no_process_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CompilationError, match="no process could be started: No such file"):
        compile_elsewhere()


# --- numba's cache ---


def fresh_kernel() -> Any:
    """A kernel that no cache can hold yet: its name is used once (and its file is this one)."""
    from gguflora.kernels.numeric import kernel

    def three(pointer: Any) -> None:
        numba.carray(pointer, 1)[0] = 3

    return kernel(three)


def test_what_is_not_in_the_cache_is_not_compiled_unless_the_block_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    with pytest.raises(NotCompiledError) as told:
        fresh_kernel()
    assert told.value.kept
    assert not list(tmp_path.rglob("*.nbc"))
    with compiling_here():
        assert fresh_kernel().cache_hits == 0
    assert fresh_kernel().cache_hits == 1
    [data] = tmp_path.rglob("*.nbc")
    data.unlink()
    with pytest.raises(NotCompiledError):
        fresh_kernel()


def test_a_change_in_any_of_the_kernels_files_makes_what_was_compiled_before_useless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba itself looks at a kernel's own file; what a kernel calls stands elsewhere and is compiled into it."""
    from gguflora.kernels import numeric

    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    with compiling_here():
        fresh_kernel()
    kernels = tmp_path / "kernels"
    (kernels / "one").mkdir(parents=True)
    (kernels / "numeric.py").write_text("")
    (kernels / "one" / "parts.py").write_text("a = 1")
    monkeypatch.setattr(numeric, "__file__", str(kernels / "numeric.py"))
    monkeypatch.setattr(numeric, "_sources", numeric._sources.__wrapped__)  # reads them each time
    with compiling_here():
        fresh_kernel()
    assert fresh_kernel().cache_hits == 1
    (kernels / "one" / "parts.py").write_text("a = 2")
    with pytest.raises(NotCompiledError):
        fresh_kernel()


def test_without_a_folder_to_keep_it_in_it_is_compiled_here_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NUMBA_CACHE_DIR is a file, and numba is told to look nowhere else."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("numba.core.config.CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    with pytest.raises(NotCompiledError) as told:
        fresh_kernel()
    assert not told.value.kept
    with compiling_here():
        assert fresh_kernel().address
