"""Processes of our own that run a module of this package and talk over pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start_module(name: str, *, stderr: int | None = None, bufsize: int = -1) -> subprocess.Popen[bytes]:
    """Start `python -m name`, with pipes to its standard input and from its standard output.

    No `multiprocessing`: it would run the user's own script once more in each process.

    Args:
        name: of the module.
        stderr: where its errors go, as for Popen; None: where ours go.
        bufsize: of the pipes, as for Popen.

    Raises:
        OSError: the system starts no process.
    """
    # The same package as ours wherever we have it from, and nothing that happens to lie in the current folder (-P).
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable or "", "-P", "-m", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=bufsize,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # an interrupt from the terminal is for us, who may want to finish a step
    )
