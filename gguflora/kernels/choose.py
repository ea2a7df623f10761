"""Which compute dtype runs, decided once at load and printed.

The choice follows from the instruction set alone, never from a timing or from free memory: the same command on the
same machine gives the same bits.
"""

from __future__ import annotations

from pathlib import Path

import torch

BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Instruction sets with which products in bfloat16 are faster than in float32, forward and backward, best first.

Timed (docs/log.md, "Which dtype"): avx512_bf16 twice as fast; avx512f and avx2 without it slower, down to a
sixtieth. amx_bf16 was timed elsewhere. `gguflora doctor` times the machine at hand and warns where this is wrong.
"""


def choose_dtype() -> tuple[torch.dtype, str]:
    """The compute dtype for this processor, and the reason in words.

    torch's own question (`_is_mkldnn_bf16_supported`) says yes on processors where bfloat16 is emulated and 60 times
    slower, so the instruction set is read from the kernel instead.
    """
    flags = processor_flags()
    for flag in BFLOAT16_INSTRUCTIONS:
        if flag in flags:
            return torch.bfloat16, f"the processor has {flag}"
    return torch.float32, "the processor has no bfloat16 arithmetic"


def tiles_pay() -> bool:
    """Whether kernels/tiles.py's products are the fastest in bfloat16 on this processor.

    Timed (docs/log.md, "Tiles"): on avx512_bf16 they take 0.7 of the time of a library's. amx_bf16 multiplies several
    times as fast as their instruction can.
    """
    flags = processor_flags()
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def processor_flags() -> frozenset[str]:
    """The instruction sets that Linux names for this processor; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()  # not Linux: nothing is known, so nothing is assumed
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
