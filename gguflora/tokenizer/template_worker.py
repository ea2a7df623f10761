"""The process that a stranger's chat template runs in: python -m gguflora.tokenizer.template_worker.

It reads messages (frames.py) from standard input and answers each on standard output: first
{"source": Jinja text} with {"names": its switches}, then every {"variables": ..., "now": ISO 8601} with {"text": ...};
{"error": why} where the template can't. It ends with its input.

The sandbox bounds what a template can reach and build (sandbox.py); what it can't bound, the operating system does:
memory, and processor time of each message. Nor can this process open a file or a socket, write to a file, or (but for
the superuser's) start another process. template_process.py is its other end.
"""

from __future__ import annotations

import datetime
import math
import resource
import sys
import time
from typing import Any, BinaryIO

from gguflora.tokenizer.frames import HEADER, from_body, to_frame
from gguflora.tokenizer.template_program import Program, compile_program, load_all, reason, run_program

MEMORY = 2**30  # bytes of address space; Python and Jinja take a tenth of it
CPU_SECONDS = 3  # for each message; llama.cpp's 70 templates take milliseconds


def main() -> None:
    """Serve one template until the input ends."""
    load_all()
    _limit_resources()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    program: Program | None = None
    while (request := _read(requests)) is not None:
        try:
            if program is None:
                program = compile_program(request["source"])
                reply: dict[str, Any] = {"names": sorted(program.names)}
            else:
                now = datetime.datetime.fromisoformat(request["now"])
                reply = {"text": run_program(program, request["variables"], now)}
        except MemoryError:
            reply = {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
        except Exception as error:  # the template's fault whatever it is: nothing else runs here
            reply = {"error": reason(error)}
        replies.write(to_frame(reply))
        replies.flush()


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    """The next message; None where the other side has closed the pipe."""
    _allow_time()
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    [length] = HEADER.unpack(header)
    return from_body(requests.read(length))


def _limit_resources() -> None:
    """Take away what a template never needs; once everything is loaded."""
    # A process at its limit of time is ended by a signal that would leave a core dump behind.
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    if sys.platform == "linux":  # elsewhere these are absent, or have no effect
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _allow_time() -> None:
    """Let the process compute CPU_SECONDS more; then the system ends it (SIGXCPU)."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(time.process_time()) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if most == resource.RLIM_INFINITY else min(seconds, most), most))


if __name__ == "__main__":
    main()
