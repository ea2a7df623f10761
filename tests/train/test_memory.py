"""The memory that is told is the process's own, now and at most."""

from __future__ import annotations

import subprocess
import sys

from gguflora.train.memory import peak_bytes, resident_bytes

MEASURE = "from gguflora.train.memory import peak_bytes; print(peak_bytes())"


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_bytes()
    assert before >= resident_bytes()
    size = before + 200_000_000 - resident_bytes()
    block = bytearray(size)
    block[::4096] = b"\1" * len(block[::4096])  # touched, or it would not be resident
    del block
    assert peak_bytes() >= before + 150_000_000  # the allocator may have had some of it


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it() -> None:
    """getrusage's number is inherited on Linux, and would be this process's 600 MB and more."""
    block = bytearray(600_000_000)
    block[::4096] = b"\1" * len(block[::4096])
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    del block
    assert int(done.stdout) < peak_bytes() - 100_000_000
