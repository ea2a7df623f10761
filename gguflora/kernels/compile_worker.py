"""The other side of first_use.py: `python -m gguflora.kernels.compile_worker` leaves the kernels in numba's cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from gguflora.kernels.first_use import compiling_here
from gguflora.kernels.operations import load_compiled


def _main() -> None:
    with suppress(OSError):  # where memory runs out for all, this process is the one to be ended (proc(5))
        Path("/proc/self/oom_score_adj").write_text("1000")
    with compiling_here():
        load_compiled()


if __name__ == "__main__":
    _main()
