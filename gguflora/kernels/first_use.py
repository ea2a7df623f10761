"""A kernel's first use on a machine: another process compiles it, and this one loads what numba then has in its cache.

numba and LLVM keep 120 MB of having compiled for as long as the process lives, and LLVM ends a process that it finds no
memory in (SIGABRT). In another process both are over when it ends. That process is this one's child: limits on
addresses and on private memory are inherited, and count what it takes alone; a cgroup's counts both.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gguflora.processes import start_module

SECONDS = 20
"""What compiling takes on a quiet machine."""
WALL_SECONDS = 600.0
"""After that it counts as hung. On a machine on which it were that slow nothing could be trained."""
_SHOWN = 200  # characters of what the process wrote last
_MEMORY = ("MemoryError", "out of memory", "bad_alloc")  # Python's words, LLVM's, C++'s; Linux's is SIGKILL


class NotCompiledError(Exception):
    """A kernel is not in numba's cache.

    Attributes:
        kept: numba will find it there once it is compiled; else it finds no folder that it may write to, and every
            process compiles for itself.
    """

    def __init__(self, kept: bool) -> None:
        super().__init__(kept)
        self.kept = kept


class CompilationError(Exception):
    """The other process could not compile the kernels; the text says why, as part of a sentence."""


_here: ContextVar[bool] = ContextVar("_here", default=False)


@contextmanager
def compiling_here() -> Iterator[None]:
    """Kernels that are imported in the block and not in numba's cache are compiled, in this process."""
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


def may_compile() -> bool:
    """Whether a kernel that is not in numba's cache may be compiled in this process."""
    return _here.get()


def compile_elsewhere(module: str = "gguflora.kernels.compile_worker") -> None:
    """Let another process compile, and wait for it; an interrupt ends both.

    Args:
        module: that it runs.

    Raises:
        CompilationError: it did not get to its end.
    """
    try:
        process = start_module(module, stderr=subprocess.PIPE)
    except OSError as error:
        raise CompilationError(f"no process could be started: {error.strerror or error}") from error
    with process:
        try:
            _, told = process.communicate(timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise CompilationError(f"it was not done after {WALL_SECONDS:.0f} s") from None
        finally:
            process.kill()
            process.wait()  # Popen itself does not after an interrupt
    if process.returncode != 0:
        raise CompilationError(_how_it_ended(process.returncode, told.decode(errors="replace")))


def _how_it_ended(code: int, told: str) -> str:
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    if code == -signal.SIGKILL or any(word in told for word in _MEMORY):
        return f"memory ran out, and the process that compiles {end}"
    last = next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "it said nothing")
    return f"the process that compiles {end} ({last[:_SHOWN]})"
