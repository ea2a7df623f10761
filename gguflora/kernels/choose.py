"""Which version of each operation runs, decided once at load and printed.

The choice follows from the instruction set alone, never from a timing or from free memory: the same command on the
same machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gguflora.kernels.activation import reference as activation
from gguflora.kernels.attention import flash
from gguflora.kernels.attention import reference as attention
from gguflora.kernels.head_loss import chunked
from gguflora.kernels.head_loss import reference as head_loss
from gguflora.kernels.lora_linear import reference as lora_linear
from gguflora.kernels.norm import reference as norm
from gguflora.kernels.rope import reference as rope

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Kernels:
    """The operations that the model calls. Their contracts stand at the references."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
    lora_linear: Callable[[Tensor, Tensor, Tensor | None, Pair | None, float], Tensor]
    attention: Callable[[Tensor, Tensor, Tensor, list[int], float], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    head_loss: Callable[[Tensor, Tensor, Tensor, Tensor, Pair | None, float], tuple[Tensor, Tensor]]


REFERENCE = Kernels(
    name="reference",
    rms_norm=norm.rms_norm,
    rotate=rope.rotate,
    lora_linear=lora_linear.lora_linear,
    attention=attention.attention,
    swiglu=activation.swiglu,
    head_loss=head_loss.head_loss,
)
CPU = replace(REFERENCE, name="cpu", attention=flash.attention, head_loss=chunked.head_loss)


def choose_kernels(dtype: torch.dtype) -> Kernels:
    """The fastest versions for `dtype`; float64, which only proofs use, gets the references."""
    return REFERENCE if dtype is torch.float64 else CPU


def choose_dtype() -> tuple[torch.dtype, str]:
    """The compute dtype for this processor, and the reason in words.

    torch's own question (`_is_mkldnn_bf16_supported`) says yes on processors where bfloat16 is emulated and 60 times
    slower, so the instruction set is read from the kernel instead.
    """
    flags = _processor_flags()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return torch.bfloat16, f"the processor has {flag}"
    return torch.float32, "the processor has no bfloat16 arithmetic"


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()  # not Linux: nothing is known, so nothing is assumed
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
