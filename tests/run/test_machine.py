"""Memory and its limits are what the system states, and the tightest of them is found."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from gguflora.run import machine
from gguflora.run.machine import Ceiling, Memory, Taken, ceiling, memory, memory_class, reach, taken

GB = 10**9
PAGE = 4096

V2 = {"/sys/fs/cgroup/memory.max": "8000000000\n", "/sys/fs/cgroup/memory.current": "3000000000\n"}
V1 = {
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000000\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
}
NO_LIMIT = 2**63 - PAGE  # what version 1 writes
SLICE = "/sys/fs/cgroup/user.slice"


@pytest.mark.parametrize(
    ("files", "cgroup", "used"),
    [
        (V2, 8 * GB, 3 * GB),
        (V2 | {"/sys/fs/cgroup/memory.max": "max\n"}, None, None),
        (V1, 6 * GB, 1 * GB),
        (V1 | {"/sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT)}, None, None),
        ({}, None, None),
        ({"/sys/fs/cgroup/memory.max": "nonsense"}, None, None),
        # a process in a cgroup below: its own limit, or the one above where that is tighter
        (
            {
                "/proc/self/cgroup": "0::/user.slice/run.scope\n",
                f"{SLICE}/run.scope/memory.max": "2000000000",
                f"{SLICE}/run.scope/memory.current": "500000000",
                f"{SLICE}/memory.max": "4000000000",
            },
            2 * GB,
            GB // 2,
        ),
        (
            {
                "/proc/self/cgroup": "0::/user.slice/run.scope\n",
                f"{SLICE}/run.scope/memory.max": "max",
                f"{SLICE}/memory.max": "4000000000",
            },
            4 * GB,
            None,
        ),
        # version 1, its other controllers, and version 2 without the memory controller beside it
        (
            {
                "/proc/self/cgroup": "8:cpu,cpuacct:/\n4:memory:/docker/ab:cd\n0::/\n",
                "/sys/fs/cgroup/memory/docker/ab:cd/memory.limit_in_bytes": "3000000000",
                "/sys/fs/cgroup/memory/docker/ab:cd/memory.usage_in_bytes": "1000000000",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT),
            },
            3 * GB,
            GB,
        ),
        # in a container the stated path is the host's; the folder that is mounted is the container's own
        (V1 | {"/proc/self/cgroup": "4:memory:/docker/abcd\n"}, 6 * GB, GB),
        (V2 | {"/proc/self/cgroup": "0::/../other\n"}, 8 * GB, 3 * GB),
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

    limits = {resource.RLIMIT_AS: 5 * GB, resource.RLIMIT_DATA: 2 * GB}
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": 4_000_000}.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda name: (limits[name], resource.RLIM_INFINITY))
    assert memory() == Memory(PAGE * 4_000_000, 9_216_000_000, cgroup, used, 5 * GB, 2 * GB)


def test_no_limit_on_addresses_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory().address_space is None
    assert memory().data is None


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


HAS = Taken(resident=3, addresses=10, private=4)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Memory(100, 90, None, None, None), Ceiling(100, "the machine")),
        (Memory(100, 90, 20, 5, None), Ceiling(20, "the cgroup")),
        # 50 addresses less the 10 that are taken, and what the process has in memory already
        (Memory(100, 90, None, None, 50), Ceiling(43, "RLIMIT_AS")),
        (Memory(100, 90, 30, 5, 50, 20), Ceiling(19, "RLIMIT_DATA")),
        (Memory(100, 90, 12, 5, 50, 20), Ceiling(12, "the cgroup")),
        (Memory(100, 90, None, None, 6), Ceiling(0, "RLIMIT_AS")),  # set below what the process has
    ],
)
def test_the_ceiling_is_the_tightest_limit_and_no_account_of_what_is_free(found: Memory, expected: Ceiling):
    assert ceiling(found, HAS) == expected


def test_what_is_in_reach_is_what_is_free_and_what_the_process_has():
    assert reach(Memory(100, 40, None, None, None), HAS) == Ceiling(43, "what is free")
    assert reach(Memory(100, 40, 30, 5, None), HAS) == Ceiling(28, "what is free")
    assert reach(Memory(100, 40, None, None, 20), HAS) == Ceiling(13, "RLIMIT_AS")


@pytest.mark.parametrize(
    ("total", "cgroup", "size"), [(24 * 2**30, None, 2**34), (2**34, None, 2**34), (24 * 2**30, 2**31, 2**31)]
)
def test_choices_follow_from_a_power_of_two(monkeypatch: pytest.MonkeyPatch, total: int, cgroup: int | None, size: int):
    monkeypatch.setattr(machine, "memory", lambda: Memory(total, total, cgroup, None, None))
    assert memory_class().size == size


def test_what_this_process_has_taken_is_the_kernels():
    found = taken()
    assert 0 < found.resident < found.addresses
    assert 0 < found.private < found.addresses
