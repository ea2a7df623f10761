"""Memory and its limits are what the system states."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from gguflora.run.machine import Memory, memory

GB = 10**9
PAGE = 4096

V2 = {"/sys/fs/cgroup/memory.max": "8000000000\n", "/sys/fs/cgroup/memory.current": "3000000000\n"}
V1 = {
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000000\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
}
NO_LIMIT = 2**63 - PAGE  # what version 1 writes


@pytest.mark.parametrize(
    ("files", "cgroup", "used"),
    [
        (V2, 8 * GB, 3 * GB),
        (V2 | {"/sys/fs/cgroup/memory.max": "max\n"}, None, None),
        (V1, 6 * GB, 1 * GB),
        (V1 | {"/sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT)}, None, None),
        ({}, None, None),
        ({"/sys/fs/cgroup/memory.max": "nonsense"}, None, None),
    ],
)
def test_the_memory_is_what_the_system_states(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cgroup: int | None, used: int | None
):
    """Linux's files as proc(5) and the cgroup documentation have them."""
    meminfo = {"/proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    9000000 kB\n"}

    def read(path: Path) -> str:
        try:
            return (files | meminfo)[str(path)]
        except KeyError:
            raise FileNotFoundError from None

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": 4_000_000}.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 * GB, resource.RLIM_INFINITY))
    assert memory() == Memory(PAGE * 4_000_000, 9_216_000_000, cgroup, used, 5 * GB)


def test_no_limit_on_addresses_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory().address_space is None


def test_this_machines_memory_is_the_kernels():
    stated = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    found = memory()
    assert found.total == int(stated.split()[1]) * 1024
    assert 0 < found.usable <= found.total


@pytest.mark.parametrize(
    ("available", "cgroup", "used", "usable"),
    [
        (9, None, None, 9),
        (None, None, None, 16),
        (9, 8, 3, 5),
        (2, 8, 3, 2),
        (9, 8, None, 8),
        (9, 8, 10, 0),  # a container above its limit, about to be killed
    ],
)
def test_what_can_be_used_is_the_tightest_limit(
    available: int | None, cgroup: int | None, used: int | None, usable: int
):
    assert Memory(16, available, cgroup, used, None).usable == usable
