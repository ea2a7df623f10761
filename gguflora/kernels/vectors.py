"""Instructions that numba has no words for: vectors of 16 numbers and AVX512-BF16, as LLVM calls them.

A function marked with `emitted` writes LLVM instructions; kernels call it with addresses and numbers. The processor's
one instruction for bfloat16, VDPBF16PS, adds to each of 16 sums the products of two neighbours: of a word, 32 bits,
that holds two bfloat16. So words are what products are made of here, not single numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types as numba_types
from numba.core import cgutils, config
from numba.extending import intrinsic

types: Any = numba_types  # as in numeric.py

LANES = 16  # float32 or words in a vector
VECTOR_BYTES = 64


class _BFloat16(ir.Type):  # type: ignore[misc]
    """llvmlite has no name for it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


INT16, INT32, INT64, FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)
HALVES = ir.VectorType(INT16, 2 * LANES)  # bfloat16's bits
_BFLOATS = ir.VectorType(_BFloat16(), 2 * LANES)

_EXP2 = (1.0, 0.693146856, 0.240222380, 0.055508930, 0.0096716979, 0.0013218672)
"""2^r for r from -1/2 to 1/2 within 2e-7 of it, 1 at 0: least squares of the relative error over Chebyshev's points."""


def has_instructions() -> bool:
    """Whether kernels that use them can run here: the processor has them, and numba was not told to forget it."""
    told = config.CPU_NAME or config.CPU_FEATURES
    return not told and bool(binding.get_host_cpu_features().get("avx512bf16", False))


def emitted(*kinds: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a function that writes LLVM instructions, (builder, *values), one that kernels call.

    Args:
        kinds: numba's types of the values: int64 for addresses and counts, float32.
    """

    def decorate(write: Callable[..., None]) -> Any:
        def typed(_typing: Any, *_kinds: Any) -> Any:
            def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                write(builder, *values)
                return context.get_dummy_value()

            return types.void(*kinds), codegen

        # numba binds a call's arguments to these names
        typed.__signature__ = inspect.signature(write)  # type: ignore[attr-defined]
        typed.__name__ = write.__name__
        return intrinsic(typed)

    return decorate


@intrinsic
def next_number(_typing: Any, address: Any) -> Any:
    """The number at an address, which then is one more: each thread that asks gets another."""

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, INT64(1), "monotonic")

    return types.int64(address), codegen


@contextmanager
def counted(builder: Any, times: Any) -> Iterator[Any]:
    """A loop; gives its index."""
    with cgutils.for_range(builder, times) as loop:
        yield loop.index


def variable(builder: Any, value: Any) -> Any:
    """A vector that changes in a loop: a place for it, which LLVM makes a register."""
    place = cgutils.alloca_once(builder, value.type)
    builder.store(value, place)
    return place


def offset(builder: Any, address: Any, *terms: tuple[Any, int]) -> Any:
    """address + the sum of value * bytes."""
    for value, size in terms:
        address = builder.add(address, builder.mul(value, INT64(size)))
    return address


def load(builder: Any, address: Any, kind: Any, vector: int = 0) -> Any:
    """The value at an address, or so many vectors after it."""
    value = builder.load(_pointer(builder, address, kind, vector))
    value.align = 4
    return value


def store(builder: Any, value: Any, address: Any, vector: int = 0) -> None:
    """Write a value to an address, or so many vectors after it."""
    builder.store(value, _pointer(builder, address, value.type, vector)).align = 4


def _pointer(builder: Any, address: Any, kind: Any, vector: int) -> Any:
    return builder.inttoptr(builder.add(address, INT64(vector * VECTOR_BYTES)), kind.as_pointer())


def splat(builder: Any, value: Any) -> Any:
    """A vector of 16 times one value."""
    kind = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT32(0))
    return shuffled(builder, first, first, [0] * LANES)


def constant(value: float) -> Any:
    """The same as a constant of float32."""
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Elements of two vectors, b's after a's, in the order of these numbers."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(order)), order))


def zipped(n: int, first: int = 0, second: int = LANES) -> list[int]:
    """An order that takes turns: `first`, `second`, the ones after them, n in all."""
    return [(second if k % 2 else first) + k // 2 for k in range(n)]


def dot(builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """Sums (16,) of float32, and to each the two products of a word of a and one of b."""
    function = _function(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, FLOATS, _BFLOATS, _BFLOATS)
    return builder.call(function, [sums, *(builder.bitcast(x, _BFLOATS) for x in (a, b))])


def narrowed(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors of float32 as one of bfloat16 (32,), to the nearest and even; numbers below 2^-126 are 0."""
    function = _function(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _BFLOATS, FLOATS, FLOATS)
    return builder.bitcast(builder.call(function, [second, first]), HALVES)


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return builder.call(_function(builder, "llvm.fma.v16f32", FLOATS, FLOATS, FLOATS, FLOATS), [x, y, z])


def larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger of each two; y where it is no number."""
    return builder.select(builder.fcmp_ordered("<", y, x), x, y)


def exp2(builder: Any, y: Any) -> Any:
    """2^y within 2e-7 of it, 0 from -200 down; NaN stays NaN."""
    y = larger(builder, constant(-200.0), y)  # minus infinity less minus infinity would be NaN
    n = builder.call(_function(builder, "llvm.rint.v16f32", FLOATS, FLOATS), [y])
    r = builder.fsub(y, n)
    p = constant(_EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        p = fma(builder, p, r, constant(coefficient))
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    scale = _function(builder, name, FLOATS, FLOATS, FLOATS, FLOATS, INT16, INT32)
    return builder.call(scale, [p, n, constant(0.0), INT16(-1), INT32(4)])  # all lanes, rounded as everything is


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
