"""A signal ends the command soon and leaves nothing behind, while it encodes large data or waits for the compiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gguflora.kernels.threads import libgomp
from gguflora.run.tokens import MANY
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
SOON = 5.0  # seconds: it takes less than one, and the machine may be busy; encoding all of it takes half a minute
CODE = """
import os, sys
cores = sorted(os.sched_getaffinity(0))[: int(sys.argv.pop(1))]
os.sched_setaffinity(0, cores)
from gguflora.cli import main
main()
"""


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def processes_of(mark: str) -> list[int]:
    """Every process that has GGUFLORA_TEST=`mark` in its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"GGUFLORA_TEST={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("given")
    data = folder / "d.jsonl"
    with data.open("w") as file:
        for number in range(MANY + 10_000):
            said = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": str(number)}]
            file.write(json.dumps({"messages": said}) + "\n")
    return tiny_llama(folder / "tiny.gguf"), data


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and sets the process's cores")
@pytest.mark.parametrize(
    ("command", "cores", "number", "code"),
    [
        (["train", "--output-dir", "out"], 1, signal.SIGINT, 130),
        (["train", "--output-dir", "out"], 2, signal.SIGINT, 130),
        (["train", "--output-dir", "out"], 2, signal.SIGTERM, 143),
        (["data", "check"], 2, signal.SIGINT, 130),
        (["data", "check"], 1, signal.SIGTERM, 143),
    ],
)
def test_a_signal_while_encoding_ends_it_soon_and_leaves_nothing(
    given: tuple[Path, Path], tmp_path: Path, command: list[str], cores: int, number: signal.Signals, code: int
):
    """No half-written tokens, no output folder, no process."""
    if cores > len(os.sched_getaffinity(0)):
        pytest.skip("there is one core")
    mark = {"GGUFLORA_TEST": str(tmp_path)}
    words = command[:2] if command[0] == "data" else command[:1]
    arguments = [*words, *map(str, given), *command[len(words) :]]
    cache = tmp_path / "cache" / "gguflora" / "tokens"
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(cores), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")} | mark,
    ) as process:
        assert wait_for(lambda: process.poll() is not None or any(path.stat().st_size for path in cache.glob(".*")))
        started = processes_of(str(tmp_path))
        process.send_signal(number)
        sent = time.monotonic()
        _, error = process.communicate(timeout=60)
        taken = time.monotonic() - sent
    assert process.returncode == code, error
    assert error.splitlines()[-1] == "gguflora: interrupted."
    assert taken < SOON
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "out").exists()
    assert len(started) >= (3 if cores > 1 else 1)  # so that the last line is no empty promise
    assert wait_for(lambda: not processes_of(str(tmp_path)), 10)


@pytest.mark.skipif(libgomp() is None, reason="nothing is compiled where torch does not run on libgomp")
def test_a_signal_while_operations_are_compiled_ends_it_soon_and_leaves_nothing(
    given: tuple[Path, Path], tmp_path: Path
):
    """The machine's first run: it says that it compiles, waits for another process, and both end."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(given[1].read_text().splitlines(keepends=True)[:8]))
    with subprocess.Popen(
        [sys.executable, "-m", "gguflora", "train", str(given[0]), str(few), "--output-dir", "out", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
        }
        | {"GGUFLORA_TEST": str(tmp_path)},
    ) as process:
        assert process.stdout
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [event["event"] for event in told] == ["model_loaded", "compiling"]
        assert wait_for(lambda: list(tmp_path.rglob("*.nbc")))  # so it is at work; 30 s on a busy machine
        started = processes_of(str(tmp_path))
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, error = process.communicate(timeout=60)
        taken = time.monotonic() - sent
    assert process.returncode == 130, error
    assert "compiling operations, once for this machine: about 20 s" in error
    assert error.splitlines()[-1] == "gguflora: interrupted."
    assert taken < SOON
    assert not (tmp_path / "out").exists()
    assert len(started) >= 2
    assert wait_for(lambda: not processes_of(str(tmp_path)), 10)
