"""What the process is set to before numbers are computed, and what their last bits depend on."""

from __future__ import annotations

import os
import platform

import torch

from gguflora.run.machine import usable_cores

PRODUCTS = 128  # a step has 50 to 90 shapes


def set_threads(threads: int | None) -> tuple[int, str]:
    """Let torch use `threads` cores (all that this process may use if None); gives the number and the reason."""
    usable = usable_cores()
    count = threads or usable
    torch.set_num_threads(count)
    return count, "as asked" if threads else f"the process may use {usable}"


def bound_product_caches() -> None:
    """Let oneDNN, and torch's own list before it, keep few compiled products; before the first product.

    Each shape of a product is compiled, and kept in 0.7 MB. Documents and rows of ever new lengths are ever new shapes,
    and at the libraries' own limit, 1,024 each, that is most of a gigabyte (docs/log.md).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRODUCTS))


def environment(threads: int) -> dict[str, str]:
    """What the last bits of a result depend on besides the inputs."""
    return {
        "torch": str(torch.__version__),
        "threads": str(threads),
        "instruction set": str(torch.backends.cpu.get_cpu_capability()),
        "machine": platform.machine(),
    }
