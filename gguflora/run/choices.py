"""What is chosen for the user, each with its reason: from the file, the options, the instruction set and the total
memory in coarse classes; never from free memory or a timing, so that the same command gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gguflora.arch import ModelSpec
from gguflora.config import ComputeConfig
from gguflora.kernels import choose_dtype
from gguflora.kernels.operations import TORCH, Operations, choose_operations
from gguflora.run.machine import memory_class

RESIDENT_SHARE = 4  # unpacked weights may take a quarter of the machine's memory


@dataclass(frozen=True)
class Choices:
    """What was chosen.

    Attributes:
        dtype: of linear layers and attention.
        packed: weights stay in the file's blocks.
        operations: the version that runs between the products; None for the reference.
        reasons: every choice in words, by what it is about.
    """

    dtype: torch.dtype
    packed: bool
    operations: Operations | None
    reasons: dict[str, str]


def choose(compute: ComputeConfig, spec: ModelSpec, threads: tuple[int, str], old: dict[str, Any] | None) -> Choices:
    """Make the choices that `compute` leaves open; `old` is run.json of a run that goes on, whose dtype is kept."""
    dtype, why_dtype = _dtype(compute, old)
    packed, why_weights = _weights(compute, spec, dtype)
    operations, why_operations = _operations(compute, dtype)
    name = str(dtype).removeprefix("torch.")
    rows = f"packed rows of at most {compute.micro_batch_tokens} tokens"
    return Choices(
        dtype,
        packed,
        operations,
        {
            "compute": f"{name} ({why_dtype})",
            "weights": f"{'packed' if packed else 'resident'} ({why_weights}); the embedding stays packed",
            "kernels": why_operations,
            "micro-batch": rows if compute.packing == "on" else "one example at a time",
            "recompute": f"{compute.recompute} (layers {'run again' if compute.recompute == 'on' else 'are kept'})",
            "threads": f"{threads[0]} ({threads[1]})",
        },
    )


def _dtype(compute: ComputeConfig, old: dict[str, Any] | None) -> tuple[torch.dtype, str]:
    if compute.dtype != "auto":
        return getattr(torch, compute.dtype), "as asked"
    before = (old or {}).get("environment", {}).get("compute dtype")
    if before in ("float32", "bfloat16"):
        return getattr(torch, before), "as the run began"
    return choose_dtype()


def _operations(compute: ComputeConfig, dtype: torch.dtype) -> tuple[Operations | None, str]:
    if compute.kernels == "reference":
        return None, "reference (autograd)"
    operations, why = choose_operations(dtype, compute.kernels)
    version = "torch's operations" if operations is TORCH else "compiled operations"
    return operations, f"explicit forward and backward, {version} ({why})"


def _weights(compute: ComputeConfig, spec: ModelSpec, dtype: torch.dtype) -> tuple[bool, str]:
    if compute.weights != "auto":
        return compute.weights == "packed", "as asked"
    elements = sum(linear.shape[0] * linear.shape[1] for linear in spec.linears())
    size = (elements + (spec.vocabulary * spec.width if spec.tied else 0)) * dtype.itemsize
    memory = memory_class()
    packed = size > memory // RESIDENT_SHARE
    relation = "more" if packed else "no more"
    return packed, f"unpacked they take {size / 2**30:.2f} GiB, {relation} than a quarter of {memory / 2**30:.0f} GiB"
