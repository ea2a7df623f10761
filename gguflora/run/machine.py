"""What this machine lets this process have: cores, and memory. No torch here."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


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
        cgroup: what the container may take: the least limit of this process's cgroup and those that it is in.
        cgroup_used: what that one has taken.
        address_space: RLIMIT_AS of this process (`ulimit -v`).
        data: RLIMIT_DATA (`ulimit -d`): private memory that may be written, touched or not.
    """

    total: int
    available: int | None
    cgroup: int | None
    cgroup_used: int | None
    address_space: int | None
    data: int | None = None

    @property
    def usable(self) -> int:
        """What a training run could take now, as far as memory goes."""
        limits = [self.total if self.available is None else self.available]
        if self.cgroup is not None:
            limits.append(self.cgroup - (self.cgroup_used or 0))
        return max(0, min(limits))


@dataclass(frozen=True)
class Taken:
    """What this process has taken, in bytes (proc(5), /proc/self/status).

    Attributes:
        resident: VmRSS; addresses: VmSize, which RLIMIT_AS limits; private: VmData, which RLIMIT_DATA limits.
        files: RssFile, of what is resident the pages that files hold as well, libraries' among them.
    """

    resident: int
    addresses: int
    private: int
    files: int = 0


@dataclass(frozen=True)
class Ceiling:
    """The most resident memory that this process may ever have, in bytes, and whose limit that is, in words."""

    size: int
    whose: str


def ceiling(found: Memory, taken: Taken) -> Ceiling:
    """The tightest of the limits; none of them changes while the process runs, unlike what is free.

    A limit on addresses counts libraries and mapped files too, one on private memory what was reserved and never
    touched: how much memory they leave is what they leave now and what the process has already.
    """
    limits = [Ceiling(found.total, "the machine")]
    if found.cgroup is not None:
        limits.append(Ceiling(found.cgroup, "the cgroup"))
    if found.address_space is not None:
        limits.append(Ceiling(max(0, taken.resident + found.address_space - taken.addresses), "RLIMIT_AS"))
    if found.data is not None:
        limits.append(Ceiling(max(0, taken.resident + found.data - taken.private), "RLIMIT_DATA"))
    return min(limits, key=lambda limit: limit.size)


def reach(found: Memory, taken: Taken) -> Ceiling:
    """The most resident memory that this process could have now, beside what others have taken."""
    free = Ceiling(taken.resident + found.usable, "what is free")
    return min(free, ceiling(found, taken), key=lambda limit: limit.size)


def memory_class() -> Ceiling:
    """The ceiling rounded down to a power of two: choices follow from it, and it is the same at every run.

    Half a machine at worst, which leaves the rest to other programs.
    """
    most = ceiling(memory(), taken())
    return Ceiling(1 << max(0, most.size.bit_length() - 1), most.whose)


def taken() -> Taken:
    """What this process has taken; zeros where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return Taken(0, 0, 0)
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Vm", "Rss"))}
    return Taken(*(sizes.get(name, 0) for name in ("VmRSS", "VmSize", "VmData", "RssFile")))


def memory() -> Memory:
    """The memory that there is now, by Linux's own accounts (proc(5), cgroup v2's and v1's files)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for limit in _cgroup_limits() if limit[0] < total]  # v1 writes a huge number for none
    cgroup, used = min(limits, default=(None, None), key=lambda limit: limit[0] or 0)
    return Memory(
        total=total,
        available=_available(),
        cgroup=cgroup,
        cgroup_used=used,
        address_space=_soft_limit(resource.RLIMIT_AS),
        data=_soft_limit(resource.RLIMIT_DATA),
    )


def _soft_limit(name: int) -> int | None:
    limit, _ = resource.getrlimit(name)
    return None if limit == resource.RLIM_INFINITY else limit


def _cgroup_limits() -> Iterator[tuple[int, int | None]]:
    """Limit and use of this process's cgroup and of each above it: a limit holds for all below.

    Inside a container its own cgroup is often mounted as if it were the root, and the path that the kernel states is
    not there: folders that don't exist are passed over.
    """
    for folder, limit_name, used_name in _cgroup_folders():
        limit = _number(folder / limit_name)
        if limit is not None:
            yield limit, _number(folder / used_name)


def _cgroup_folders() -> Iterator[tuple[Path, str, str]]:
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    paths: dict[str, str] = {"": "/", "memory": "/"}
    for line in _lines("/proc/self/cgroup"):  # number:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for mount, path, names in (
        ("/sys/fs/cgroup", paths[""], ("memory.max", "memory.current")),
        ("/sys/fs/cgroup/memory", paths["memory"], v1),
    ):
        # "/../x" is a cgroup outside of the namespace, whose folder can't be seen from here.
        inside = PurePosixPath(*(name for name in PurePosixPath(path).parts if name not in ("/", "..")))
        for part in (inside, *inside.parents):
            yield (Path(mount) / part, *names)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _available() -> int | None:
    lines = (line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:"))  # from Linux 3.14 on
    return next((int(line.split()[1]) * 1024 for line in lines), None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []  # not Linux
