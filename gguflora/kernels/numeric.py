"""What compiled kernels are written with: rows of numbers behind addresses, bfloat16, exp.

bfloat16 is the upper half of a float32 (numba has no such type): a row of it is uint16, widened when it is read and
rounded to nearest even when it is written, as torch does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit
from numba import types as numba_types
from numba.core.compiler import CompilerBase
from numba.extending import intrinsic, overload

from gguflora.kernels.first_use import NotCompiledError, may_compile
from gguflora.kernels.threads import WORDS, libgomp

types: Any = numba_types  # numba's own annotations stop short of what compiled code does with them

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order and fused multiply-adds. A NaN stays one: a kernel that hid it would hide what went wrong."""

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


def kernel(function: Callable[..., None]) -> Any:
    """Make of a function of 64-bit words the C function that threads.run takes, from numba's cache as a rule.

    Raises:
        NotCompiledError: it is not there, and this process may not compile (first_use.py).
    """
    return _compile(function, FASTMATH)


def exact_kernel(function: Callable[..., None]) -> Any:
    """The same where every rounding counts."""
    return _compile(function, set())


class _NoCompiler(CompilerBase):  # type: ignore[misc]  # numba.core.compiler is Any here
    """Stands where numba's compiler does, which is asked for what is not in the cache."""

    def define_pipelines(self) -> list[Any]:
        raise NotCompiledError(kept=True)


def _compile(function: Callable[..., None], fastmath: set[str]) -> Any:
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        binding.add_symbol(f"gguflora_{name}", _symbol(name))
    # numba names its cache's files by this, and sees by itself only when the file that a kernel stands in has changed.
    function.__qualname__ = f"{function.__qualname__}_{_sources()}"
    signature = types.void(types.CPointer(types.int64))
    options = {"fastmath": fastmath or False, "error_model": "numpy"}
    compiler = None if may_compile() else _NoCompiler
    try:
        return cfunc(signature, cache=True, pipeline_class=compiler, **options)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):  # it says so where it found no folder that it may write to
            raise
        if not may_compile():
            raise NotCompiledError(kept=False) from error
        return cfunc(signature, **options)(function)


@cache
def _sources() -> str:
    """A hash of all that kernels are made of: what one calls, in whichever file, is compiled into it."""
    folder = Path(__file__).parent
    return sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()[:12]


def _symbol(name: str) -> int:
    library = libgomp()
    if library is None:
        return 0  # never called: threads.run refuses
    return int(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)


part = njit(fastmath=FASTMATH, error_model="numpy", forceinline=True)
"""A function that kernels call.

It is compiled into each of them. Left to the linker, a kernel from numba's cache would call another copy of it than the
kernel that was compiled in the process, optimised otherwise: the first run on a machine would have other bits.
"""

exactly = njit(error_model="numpy", forceinline=True)
"""The same where every rounding counts."""

_thread_number = types.ExternalFunction("gguflora_omp_get_thread_num", types.int32())
_thread_count = types.ExternalFunction("gguflora_omp_get_num_threads", types.int32())


@part
def words_of(pointer: Any) -> Any:
    """The kernel's arguments (WORDS,)."""
    return numba.carray(pointer, WORDS)


@part
def my_number() -> Any:
    """This thread's number, and how many there are."""
    return np.int64(_thread_number()), np.int64(_thread_count())


@part
def my_rows(rows: Any) -> Any:
    """This thread's share of the rows: first and end."""
    number, count = my_number()
    return rows * number // count, rows * (number + 1) // count


@intrinsic
def _reinterpret(_typing: Any, value: Any, kind: Any) -> Any:
    target = _number_type(kind)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = arguments[0]
        if target.bitwidth < value.bitwidth:  # numba widens what is shifted or added
            bits = builder.trunc(bits, ir.IntType(target.bitwidth))
        return builder.bitcast(bits, context.get_value_type(target))

    return target(value, kind), codegen


def _number_type(kind: Any) -> Any:
    """The number type that a class such as np.float32, as compiled code sees it, makes."""
    return kind.dtype


@intrinsic
def _from_float16(_typing: Any, bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def _pointer(_typing: Any, address: Any, kind: Any) -> Any:
    target = types.CPointer(_number_type(kind))

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(address, kind), codegen


@part
def numbers(address: Any, n: Any, kind: Any) -> Any:
    """n numbers at an address: (n,) of np.float32, or np.uint16 for bfloat16."""
    return numba.carray(_pointer(address, kind), n)


@part
def single(word: Any) -> Any:
    """The number that a word holds as the bits of a double, in float32."""
    return np.float32(_reinterpret(word, np.float64))


@exactly
def float16_at(row: Any, index: Any) -> Any:
    """The little-endian float16 that begins at a byte of a row, as float32."""
    return _from_float16(np.uint16(row[index] | row[index + 1] << 8))


@part
def widen(half: Any) -> Any:
    """A bfloat16's bits as float32."""
    return _reinterpret(np.uint32(half) << np.uint32(16), np.float32)


@part
def narrow(value: Any) -> Any:
    """The bits of the bfloat16 that is nearest to a float32, the even one of two."""
    bits = _reinterpret(value, np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(0x7FC0) if np.isnan(value) else np.uint16(rounded)


def get(array: Any, index: Any) -> Any:
    """array[index] as float32."""


def put(array: Any, index: Any, value: Any) -> None:
    """Write float32 `value` to array[index]."""


OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy", "forceinline": True}


# numba wants the versions' signatures, annotations too, to be those of what chooses among them.
@overload(get, jit_options=OPTIONS)
def _get(array: Any, index: Any) -> Any:  # noqa: ARG001
    def get_half(array: Any, index: Any) -> Any:
        return widen(array[index])

    def get_float(array: Any, index: Any) -> Any:
        return array[index]

    return get_half if array.dtype == types.uint16 else get_float


@overload(put, jit_options=OPTIONS)
def _put(array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    def put_half(array: Any, index: Any, value: Any) -> Any:
        array[index] = narrow(value)

    def put_float(array: Any, index: Any, value: Any) -> Any:
        array[index] = value

    return put_half if array.dtype == types.uint16 else put_float


@njit(fastmath=FASTMATH | {"nnan"}, error_model="numpy", forceinline=True)
def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers. Of a row with a NaN the largest may be anything: what is computed with it is NaN."""
    return a if a > b else b


@part
def exp(x: Any) -> Any:
    """e^x in float32 within 2 units in the last place (the polynomial of Cephes' expf); NaN stays NaN.

    From 57 on it stays e^57, 6e24: a product of it with other factors, in any order, is then no overflow.
    """
    x = np.float32(57.0) if x > np.float32(57.0) else x
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _EXP[0]
    p = p * r + _EXP[1]
    p = p * r + _EXP[2]
    p = p * r + _EXP[3]
    p = p * r + _EXP[4]
    p = p * r + _EXP[5]
    p = p * (r * r) + r + np.float32(1.0)
    return p * _reinterpret(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23), np.float32)
