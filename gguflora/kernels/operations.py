"""What the explicit forward and backward compute between matrix products, in two versions: torch's operations, and
functions that numba compiled (threads.py), which read and write memory once.

Which runs is decided at load and printed; both give the same within rounding, and tests hold the second to the first.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from gguflora.gguf.format import GgmlType
from gguflora.kernels.activation import explicit as activation
from gguflora.kernels.attention.versions import TORCH as TORCH_ATTENTION
from gguflora.kernels.attention.versions import Attention
from gguflora.kernels.choose import tiles_pay
from gguflora.kernels.dequantise.into import dequantise
from gguflora.kernels.first_use import CompilationError, NotCompiledError, compile_elsewhere, compiling_here
from gguflora.kernels.head_loss.cross_entropy import CrossEntropy, cross_entropy
from gguflora.kernels.lora_linear import explicit as lora_linear
from gguflora.kernels.lora_linear.versions import LoraLinear
from gguflora.kernels.norm import explicit as norm
from gguflora.kernels.residual import explicit as residual
from gguflora.kernels.residual.explicit import Add
from gguflora.kernels.rope import explicit as rope
from gguflora.kernels.threads import libgomp

Dequantise = Callable[[Tensor, GgmlType, Tensor], None]


class Norm(Protocol):
    """norm/explicit.py and norm/compiled.py."""

    def forward(self, x: Tensor, weight: Tensor, epsilon: float, y: Tensor, r: Tensor) -> None:
        """As forward of both files."""

    def apply(self, x: Tensor, weight: Tensor, r: Tensor, y: Tensor) -> None:
        """As apply of both files."""

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, dx: Tensor, add: bool = False) -> None:
        """As backward of both files."""


class Rope(Protocol):
    """rope/explicit.py and rope/compiled.py."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, half_split: bool, out: Tensor, back: bool = False) -> None:
        """As rotate of both files."""


class Activation(Protocol):
    """activation/explicit.py and activation/compiled.py."""

    def forward(self, gate: Tensor, up: Tensor, activation: str, y: Tensor) -> None:
        """As forward of both files."""

    def backward(
        self, dy: Tensor, gate: Tensor, up: Tensor, activation: str, d_gate: Tensor, d_up: Tensor, y: Tensor
    ) -> None:
        """As backward of both files."""


@dataclass(frozen=True)
class Operations:
    """One version of each."""

    norm: Norm
    rope: Rope
    activation: Activation
    add: Add
    attention: Attention
    lora_linear: LoraLinear
    cross_entropy: CrossEntropy
    dequantise: Dequantise


TORCH = Operations(norm, rope, activation, residual.add, TORCH_ATTENTION, lora_linear, cross_entropy, dequantise)


def choose_operations(dtype: torch.dtype, wanted: str) -> tuple[Operations, str]:
    """The version to run in a compute dtype, and the reason in words; at the first use on a machine it takes seconds.

    Args:
        dtype: compiled functions know float32 and bfloat16.
        wanted: "torch", or anything else for the compiled ones where they can run.
    """
    if wanted == "torch":
        return TORCH, "as asked"
    if dtype not in (torch.float32, torch.bfloat16):
        return TORCH, f"compiled ones are for float32 and bfloat16, not {dtype}"
    why = _unusable()
    return (TORCH, why) if why else _compiled_or_torchs()


@cache
def _compiled_or_torchs() -> tuple[Operations, str]:
    """The compiled version, but where it could not be compiled; what has failed is not tried again."""
    try:
        operations = compiled()
    except CompilationError as error:
        return TORCH, f"compiled ones are missing: {error}"
    tiles = "" if operations.lora_linear is lora_linear else "; bfloat16 is multiplied by tiles"
    return operations, f"by numba, on torch's threads{tiles}"


def missing() -> NotCompiledError | None:
    """What stands between the compiled version and its use, if it can be used at all: that it must be compiled."""
    if _unusable() or _compiled_or_torchs.cache_info().currsize:  # nothing is to be had, or no longer to be waited for
        return None
    try:
        _from_cache()
    except NotCompiledError as error:
        return error
    return None


def _unusable() -> str:
    """Why compiled operations can't be used on this machine at all; empty where they can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    if libgomp() is None:
        return "torch has no libgomp here"
    try:
        importlib.import_module("numba")
    except ImportError as error:  # as a rule numpy is newer than this numba knows
        return f"numba can't be imported: {error}"
    return ""


@cache
def compiled() -> Operations:
    """The compiled version; numba is imported, and at the first use on a machine another process compiles.

    Raises:
        ImportError: numba can't be imported.
        CompilationError: the other process failed.
    """
    try:
        return _from_cache()
    except NotCompiledError as error:
        if error.kept:
            compile_elsewhere()
    with compiling_here():  # nothing is left to compile, but where numba has no folder, or not the other process's
        return load_compiled()


@cache
def _from_cache() -> Operations:
    return load_compiled()


def load_compiled() -> Operations:
    """Import every compiled kernel: this is the one list of them.

    Raises:
        ImportError: numba can't be imported.
        NotCompiledError: one is not in numba's cache, outside of first_use.compiling_here.
    """
    from gguflora.kernels.activation import compiled as activation
    from gguflora.kernels.attention.compiled import COMPILED
    from gguflora.kernels.dequantise import compiled as dequantise
    from gguflora.kernels.head_loss import compiled as head_loss
    from gguflora.kernels.norm import compiled as norm
    from gguflora.kernels.residual import compiled as residual
    from gguflora.kernels.rope import compiled as rope
    from gguflora.kernels.vectors import has_instructions

    attention: Attention = Attention(COMPILED)
    linear: LoraLinear = lora_linear
    if tiles_pay() and has_instructions():
        from gguflora.kernels.attention import flash
        from gguflora.kernels.lora_linear import tiled

        attention, linear = Attention(COMPILED, flash), tiled
    return Operations(
        norm, rope, activation, residual.add, attention, linear, head_loss.cross_entropy, dequantise.dequantise
    )
