"""A state's tensors are written as safetensors' own library writes them, and no copy of them is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguflora.train.tensor_file import pieces_of

SHAPES = st.lists(st.integers(0, 5), max_size=3)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), SHAPES, max_size=6))
def test_the_bytes_are_those_of_the_library(shapes: dict[str, list[int]]) -> None:
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    assert b"".join(pieces_of(tensors)) == safetensors.torch.save(tensors)


def test_another_dtype_is_no_silent_mistake() -> None:
    with pytest.raises(AssertionError):
        list(pieces_of({"a": torch.zeros(2, dtype=torch.float64)}))


SAVE = """
import hashlib, resource, torch
from gguflora.train.tensor_file import pieces_of

tensors = {str(n): torch.ones(5_000_000) for n in range(10)}  # 200 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest = hashlib.sha256()
with open("/dev/null", "wb") as file:
    for piece in pieces_of(tensors):
        file.write(piece)
        digest.update(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_writing_takes_no_memory_worth_naming() -> None:
    """The library's own took twice the tensors' 200 MB."""
    told = subprocess.run(
        [sys.executable, "-c", SAVE], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) < 10_000  # KiB
