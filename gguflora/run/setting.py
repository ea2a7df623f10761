"""What the process is set to before numbers are computed: threads, and how memory and waiting behave."""

from __future__ import annotations

import ctypes
import platform

import torch

from gguflora.run.machine import usable_cores

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def set_threads(threads: int | None) -> tuple[int, str]:
    """Let torch use `threads` cores (all that this process may use if None); gives the number and the reason."""
    usable = usable_cores()
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
