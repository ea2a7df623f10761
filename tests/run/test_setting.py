"""What the process is set to follows from the machine's limits, and is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gguflora.kernels import choose_dtype
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


MANY_SHAPES = """
import sys, torch
from gguflora.kernels import choose_dtype
from gguflora.run.setting import bound_product_caches

def resident():  # anonymous memory, in MB
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("RssAnon"))

if sys.argv[1] == "bounded":
    bound_product_caches()
weight = torch.randn(64, 64).bfloat16()
torch.mm(weight, weight)
before = resident()
for tokens in range(65, 665):
    torch.mm(weight.new_ones(tokens, 64), weight)
print(resident() - before)
"""


@pytest.mark.skipif(choose_dtype()[0] is not torch.bfloat16, reason="float32 products are not oneDNN's here")
def test_products_of_ever_new_shapes_take_no_ever_more_memory() -> None:
    """600 shapes in a process of their own: with the caches bounded, and as the libraries would have it (control)."""
    grown = {
        how: float(
            subprocess.run(
                [sys.executable, "-c", MANY_SHAPES, how],
                env={name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name},
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
        )
        for how in ("bounded", "as it is")
    }
    print(grown)
    assert grown["bounded"] < 0.5 * grown["as it is"]
