"""The table of what llama.cpp does with a pair on each tensor is true: every tensor of every row is tried."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguflora.arch import model_spec
from gguflora.gguf import open_gguf
from tests.tiny import OWN, QKV, tiny_model

ROOT = Path(__file__).parents[2]
FILES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, biased": {"tied": False, "biases": QKV},
    "untied, with rope_freqs": {"tied": False, "rope_freqs": True},
}
CASES = [(architecture, file) for architecture in OWN for file in ("tied", "untied, biased")]
CASES += [("llama", "untied, with rope_freqs")]  # no other architecture has this tensor


def effects(model: Path, folder: Path, tensors: list[str]) -> dict[str, str]:
    """By tensor; where the process ends, a new one goes on behind the tensor that ended it."""
    found: dict[str, str] = {}
    while len(found) < len(tensors):
        left = tensors[len(found) :]
        done = subprocess.run(
            [sys.executable, "-m", "tests.parity.adapter_probe", model, folder, *left],
            cwd=ROOT,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        found |= dict(line.split() for line in done.stdout.splitlines())
        if done.returncode:
            assert done.returncode < 0, done.stderr  # a signal; an exception of the probe's own is no finding
            found[tensors[len(found)]] = "aborts"
    return found


@pytest.mark.parametrize(("architecture", "file"), CASES)
def test_what_the_row_says_of_a_pair_is_what_llama_cpp_does(tmp_path: Path, architecture: str, file: str) -> None:
    path = tiny_model(tmp_path / "t.gguf", architecture=architecture, **FILES[file])
    gguf = open_gguf(path)
    tensors = [name for name in gguf.tensors if not name.startswith(("blk.0", "blk.2"))]
    tensors += [] if "output.weight" in tensors else ["output.weight"]
    found = effects(path, tmp_path, tensors)
    biases = [name for name in tensors if name.endswith(".bias")]
    assert len(biases) == (3 if architecture == "qwen2" or "biases" in FILES[file] else 0)
    assert [found.pop(name) for name in biases] == ["ignored"] * len(biases)
    stated = model_spec(gguf).pairs
    assert found == {name: stated[name.removesuffix(".weight").rsplit(".", 1)[-1]] for name in found}
    assert len(found) >= 11
    print(found)
