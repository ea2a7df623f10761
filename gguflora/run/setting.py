"""What the process is set to before numbers are computed: threads, and how memory and waiting behave."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def set_threads(threads: int | None) -> tuple[int, str]:
    """Let torch use `threads` cores (all that this process may use if None); gives the number and the reason."""
    usable = _usable_cores()
    count = threads or usable
    torch.set_num_threads(count)
    return count, "as asked" if threads else f"the process may use {usable}"


def keep_freed_memory() -> None:
    """Let glibc's allocator keep large blocks for reuse instead of giving them back after each operation.

    Autograd allocates and frees the same large tensors at every step; giving them back costs a page fault for each
    4 KiB the next time (docs/log.md has the figures). Elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)


def environment(threads: int) -> dict[str, str]:
    """What the last bits of a result depend on besides the inputs."""
    return {
        "torch": str(torch.__version__),
        "threads": str(threads),
        "instruction set": str(torch.backends.cpu.get_cpu_capability()),
        "machine": platform.machine(),
    }


def total_memory() -> int:
    """Memory of the machine, or what its cgroup allows, in bytes, rounded down to a power of two: a coarse class."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no cgroup v2 here, or no limit ("max")
        limit = total
    return 1 << (min(total, limit).bit_length() - 1)


def _usable_cores() -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota() or affinity))


def _cgroup_quota() -> int | None:
    """Whole cores that the cgroup's quota allows (cgroup v2, cpu.max); None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None  # no cgroup v2 here
    return None if quota == "max" else max(1, int(quota) // int(period))
