"""What is chosen for the user, each with its reason: from the file, the options, the instruction set and the total
memory in coarse classes; never from free memory or a timing, so that the same command gives the same bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from gguflora.arch import ModelSpec
from gguflora.config import ComputeConfig
from gguflora.gguf import GgufFile
from gguflora.kernels import choose_dtype
from gguflora.kernels.operations import TORCH, Operations, choose_operations
from gguflora.run.fitting import ROWS, Fit, fit, too_little
from gguflora.run.machine import Ceiling, memory_class
from gguflora.run.memory_plan import Load, MemoryPlan, Setting, matrices, measured_tokens, memory_plan, row_tokens

RESIDENT_SHARE = 4  # unpacked weights may take a quarter of the machine's memory


@dataclass(frozen=True)
class Choices:
    """What was chosen.

    Attributes:
        setting: what memory depends on.
        operations: the version that runs between the products; None for the reference.
        plan: of memory; None for the reference, whose graph is autograd's.
        row: tokens of the longest row that there will be, trained or measured.
        reasons: every choice in words, by what it is about.
    """

    setting: Setting
    operations: Operations | None
    plan: MemoryPlan | None
    row: int
    reasons: dict[str, str]

    @property
    def record(self) -> dict[str, Any]:
        """The setting as plain data, for run.json, which has the dtype elsewhere."""
        setting = self.setting
        return {"packed": setting.packed, "rows": setting.rows, "recompute": setting.recompute}


def choose(
    compute: ComputeConfig,
    gguf: GgufFile,
    spec: ModelSpec,
    load: Load,
    threads: tuple[int, str],
    old: dict[str, Any] | None = None,
) -> Choices:
    """Make the choices that `compute` leaves open.

    Args:
        compute: what was asked for.
        gguf: the model.
        spec: what it holds.
        load: what is trained.
        threads: how many, and why.
        old: run.json of a run that goes on. Its dtype is kept, and where the same was asked for, all that was chosen.

    Raises:
        UsageError: no setting keeps to the memory that was asked for.
    """
    dtype, why_dtype = _dtype(compute, old)
    operations, why_operations = _operations(compute, dtype)
    limit = _limit(compute)
    first, why_weights = _fastest(compute, spec, dtype, limit)
    compiled = operations is not None and operations is not TORCH
    tiles = operations is not None and operations.attention.flash is not None and dtype is torch.bfloat16
    first = dataclasses.replace(first, compiled=compiled, tiles=tiles, threads=threads[0])
    plan = partial(memory_plan, gguf, spec)
    setting, planned, why_memory = first, None, "not planned: the graph is autograd's"
    before = _chosen_before(compute, old, first)
    if operations is not None and before is not None:
        setting, planned, why_memory = before, plan(load, before), "as the run began"
    elif operations is not None:
        found = fit(first, compute, load, plan, limit.size)
        if compute.memory is not None and not found.fits:
            raise too_little(compute.memory, limit.size, load, plan, found)
        setting, planned, why_memory = found.setting, found.plan, _memory_in_words(found, limit)
    reasons = {
        "compute": f"{name_of(dtype)} ({why_dtype})",
        "weights": _weights_in_words(setting, first, why_weights),
        "kernels": why_operations,
        "micro-batch": _rows_in_words(setting, first, compute),
        "recompute": _recompute_in_words(setting, first),
        "threads": f"{threads[0]} ({threads[1]})",
        "memory": why_memory,
    }
    row = max(row_tokens(load, setting.rows), measured_tokens(load, setting.rows))
    return Choices(setting, operations, planned, row, reasons)


def name_of(dtype: torch.dtype) -> str:
    """As options spell it."""
    return str(dtype).removeprefix("torch.")


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


def _limit(compute: ComputeConfig) -> Ceiling:
    """What the peak is to keep to: what was asked for, or the machine's class, which is the same at every run."""
    if compute.memory_bytes is not None:
        return Ceiling(compute.memory_bytes, f"--memory {compute.memory}")
    machine = memory_class()
    return Ceiling(machine.size, f"{machine.size / 2**30:g} GiB, the power of two within what {machine.whose} allows")


def _fastest(compute: ComputeConfig, spec: ModelSpec, dtype: torch.dtype, limit: Ceiling) -> tuple[Setting, str]:
    """The setting where memory is no question, and why its weights are packed or not."""
    packed, why = _weights(compute, spec, dtype, limit)
    return Setting(dtype, packed, compute.micro_batch_tokens or ROWS[0], compute.recompute == "on"), why


def _weights(compute: ComputeConfig, spec: ModelSpec, dtype: torch.dtype, limit: Ceiling) -> tuple[bool, str]:
    if compute.weights != "auto":
        return compute.weights == "packed", "as asked"
    size = dtype.itemsize * sum(prod(matrix.shape) for matrix in matrices(spec))
    if compute.memory is not None:
        return False, f"unpacked they take {size / 1e9:.2f} GB"
    packed = size > limit.size // RESIDENT_SHARE
    relation = "more" if packed else "no more"
    return packed, f"unpacked they take {size / 2**30:.2f} GiB, {relation} than a quarter of {limit.size / 2**30:g} GiB"


def _chosen_before(compute: ComputeConfig, old: dict[str, Any] | None, first: Setting) -> Setting | None:
    """The setting that a run with the same options chose, from its run.json."""
    if old is None or old.get("compute") != dataclasses.asdict(compute):
        return None
    match old.get("chosen"):
        case {"packed": bool(packed), "rows": int(rows), "recompute": bool(recompute)} if rows > 0:
            return dataclasses.replace(first, packed=packed, rows=rows, recompute=recompute)
        case _:
            return None


def _weights_in_words(setting: Setting, first: Setting, why: str) -> str:
    why = why if setting.packed == first.packed else "to save memory"
    place = "packed, read through the file's map" if setting.packed else "resident"
    return f"{place} ({why}); the embedding stays packed"


def _rows_in_words(setting: Setting, first: Setting, compute: ComputeConfig) -> str:
    if compute.packing == "off":
        return "one example at a time"
    why = "as asked" if compute.micro_batch_tokens else "the default"
    return f"packed rows of at most {setting.rows} tokens ({why if setting.rows == first.rows else 'to save memory'})"


def _recompute_in_words(setting: Setting, first: Setting) -> str:
    if not setting.recompute:
        return "off (layers are kept)"
    return "on (layers run again)" if first.recompute else "on (layers run again, to save memory)"


def _memory_in_words(found: Fit, limit: Ceiling) -> str:
    words = f"{found.plan.peak / 1e9:.2f} GB planned, {'within' if found.fits else 'more than'} {limit.whose}"
    if found.plan == found.fastest:
        return words
    return f"{words}; the fastest setting would take {found.fastest.peak / 1e9:.2f} GB"
