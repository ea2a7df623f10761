"""Every command in docs/data.md is run, in the order they stand, and every format and key of the code is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gguflora.data.compression import COMPRESSIONS
from gguflora.data.records import KEYS
from gguflora.data.sources import FORMATS
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands, with `gguflora` and `python` on the path."""
    folder = tmp_path_factory.mktemp("reader")
    tiny_llama(folder / "model.gguf")
    (folder / "bin").mkdir()
    (folder / "bin" / "gguflora").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gguflora "$@"\n')
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in (folder / "bin").iterdir():
        program.chmod(0o755)
    return folder


def shell(commands: str, folder: Path) -> str:
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_works_and_python_reads_the_same_files(folder: Path):
    assert len(blocks("sh")) == 8
    for block in blocks("sh"):
        said = shell(block, folder)
        commands = len(re.findall(r"^.*gguflora eval", block, re.MULTILINE))
        assert len(re.findall(r"^\d+ trained tokens in 1 examples$", said, re.MULTILINE)) == commands
    assert (folder / "out" / "final_adapter.gguf").exists()
    [code] = blocks("python")
    (folder / "code.py").write_text(code)
    said = shell("python code.py", folder)
    assert said.splitlines() == ["sums.jsonl:1", "notes/kitchen.md"]


def test_every_suffix_and_key_is_named():
    for name in (*FORMATS, *COMPRESSIONS, *KEYS):
        assert f"`{name}`" in TEXT
