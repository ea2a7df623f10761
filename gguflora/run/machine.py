"""What this machine lets this process have: cores, and memory. No torch here."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path


def usable_cores() -> int:
    """Processor cores that this process may use: its affinity, or the cgroup's quota where that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota() or affinity))


def _cgroup_quota() -> int | None:
    """Whole cores that the cgroup's quota allows (cgroup v2, cpu.max); None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None  # no cgroup v2 here
    return None if quota == "max" else max(1, int(quota) // int(period))


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; None where there is no such limit, or the system does not say.

    Attributes:
        total: of the machine.
        available: that a program could take now without swapping (Linux).
        cgroup: what the container may take.
        cgroup_used: what it has taken.
        address_space: RLIMIT_AS of this process (`ulimit -v`).
    """

    total: int
    available: int | None
    cgroup: int | None
    cgroup_used: int | None
    address_space: int | None

    @property
    def usable(self) -> int:
        """What a training run could take now, as far as memory goes."""
        limits = [self.total if self.available is None else self.available]
        if self.cgroup is not None:
            limits.append(self.cgroup - (self.cgroup_used or 0))
        return max(0, min(limits))


def memory_class() -> int:
    """Memory of the machine, or what its cgroup allows, in bytes, rounded down to a power of two.

    Choices follow from this: unlike what is free, it is the same at every run.
    """
    now = memory()
    return 1 << (min(now.total, now.cgroup or now.total).bit_length() - 1)


def memory() -> Memory:
    """The memory that there is now, by Linux's own accounts (proc(5), cgroup v2's and v1's files)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cgroup = _number("/sys/fs/cgroup/memory.max") or _number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    used = _number("/sys/fs/cgroup/memory.current") or _number("/sys/fs/cgroup/memory/memory.usage_in_bytes")
    bounded = cgroup is not None and cgroup < total  # v1 writes a huge number for none
    return Memory(
        total=total,
        available=_available(),
        cgroup=cgroup if bounded else None,
        cgroup_used=used if bounded else None,
        address_space=None if limit == resource.RLIM_INFINITY else limit,
    )


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux, or older than 3.14
        return None
