"""Loading takes no more memory than what it gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAPPED = """
import sys, torch
from gguflora.arch import model_spec
from gguflora.gguf import open_gguf
from gguflora.model import load_decoder

gguf = open_gguf(sys.argv[1])
decoder = load_decoder(gguf, model_spec(gguf), torch.bfloat16, packed=sys.argv[2] == "packed")
lines = open("/proc/self/smaps").read().splitlines()
at = next(index for index, line in enumerate(lines) if line.endswith(gguf.path.name))
print(next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:")))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a map is in memory")
def test_a_file_that_was_unpacked_takes_no_memory_besides(smollm2_path: Path) -> None:
    """Of the file's 91 MB nothing stays mapped in; packed weights, which are the file, are the control."""
    resident, packed = (
        int(
            subprocess.run(
                [sys.executable, "-c", MAPPED, str(smollm2_path.resolve()), how],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
        )
        for how in ("resident", "packed")
    )
    assert resident < 2_000  # kB
    assert packed > 60_000
