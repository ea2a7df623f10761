"""What the process is set to before numbers are computed, and what their last bits depend on."""

from __future__ import annotations

import platform

import torch

from gguflora.run.machine import usable_cores


def set_threads(threads: int | None) -> tuple[int, str]:
    """Let torch use `threads` cores (all that this process may use if None); gives the number and the reason."""
    usable = usable_cores()
    count = threads or usable
    torch.set_num_threads(count)
    return count, "as asked" if threads else f"the process may use {usable}"


def environment(threads: int) -> dict[str, str]:
    """What the last bits of a result depend on besides the inputs."""
    return {
        "torch": str(torch.__version__),
        "threads": str(threads),
        "instruction set": str(torch.backends.cpu.get_cpu_capability()),
        "machine": platform.machine(),
    }
