"""What the process is set to follows from the machine's limits, and is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gguflora.run.setting import environment, set_threads


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [
        (8, "max 100000", 8),
        (8, "200000 100000", 2),
        (8, "150000 100000", 1),  # one and a half: a second thread would wait half of the time
        (8, "50000 100000", 1),
        (2, "800000 100000", 2),
        (4, None, 4),  # no cgroup v2
        (4, "nonsense", 4),
    ],
)
def test_threads_are_the_cores_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, cores: int, quota: str | None, expected: int
):
    def read(path: Path) -> str:
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(Path, "read_text", read)
    assert set_threads(None) == (expected, f"the process may use {expected}")
    assert torch.get_num_threads() == expected


def test_threads_as_asked():
    assert set_threads(3) == (3, "as asked")
    assert torch.get_num_threads() == 3


def test_the_environment_names_what_last_bits_depend_on():
    found = environment(3)
    assert found["torch"] == torch.__version__
    assert found["threads"] == "3"
    assert set(found) == {"torch", "threads", "instruction set", "machine"}
    assert all(found.values())
