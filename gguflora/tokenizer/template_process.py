"""A chat template in a process of its own, seen from ours: started once, asked for every rendering.

What the process may take, and what goes over the pipes, stands in template_worker.py. Here is what must be enforced
from outside: that every answer comes in time and is not too long, and that the process ends with us.
"""

from __future__ import annotations

import datetime
import functools
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from gguflora.errors import MachineError
from gguflora.processes import start_module
from gguflora.tokenizer.frames import HEADER, from_body, to_frame

WALL_SECONDS = 30.0  # for an answer: ten times the processor time that the worker gives itself, for a busy machine
MAX_REPLY = 2**25  # bytes: the longest text that a template may write, with every character escaped
_PIECE = 2**16  # bytes that a pipe holds
_GRACE_SECONDS = 5  # for a process that has closed its pipe to be gone


class TemplateFailure(Exception):
    """The template can't be compiled or run; the text says why, as part of a sentence."""


class TemplateProcess:
    """One template, compiled in a process of its own; where that has ended, the next rendering starts another.

    Args:
        source: Jinja text.

    Attributes:
        names: of the switches that the template reads.

    Raises:
        TemplateFailure: `source` is no valid template, or compiling it breaks a limit.
        MachineError: the system starts no process.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._turn = threading.Lock()  # two threads must not read each other's answers
        self.names = self._start()

    def render(self, variables: Mapping[str, Any], now: datetime.datetime) -> str:
        """The text that the template writes.

        Args:
            variables: what it may read; JSON values alone.
            now: what its clock shows.

        Raises:
            TemplateFailure: the template raises an error or breaks a limit, or its process ended.
            MachineError: the system starts no process.
        """
        with self._turn:
            if self._process is None:
                self._start()
            return str(self._ask({"variables": variables, "now": now.isoformat()}, "text"))

    def _start(self) -> frozenset[str]:
        self._process: subprocess.Popen[bytes] | None = _start_worker()
        self._end = weakref.finalize(self, _end, self._process, os.getpid())
        return frozenset(map(str, self._ask({"source": self._source}, "names")))

    def _ask(self, message: Mapping[str, Any], wanted: str) -> Any:
        """What the answer to a message has under `wanted`."""
        assert self._process is not None
        process, whole = self._process, False
        try:
            frame = to_frame(message)
        except ValueError as error:
            raise TemplateFailure(str(error)) from error
        try:
            answer = from_body(_exchange(process, frame, time.monotonic() + WALL_SECONDS))
            whole = True
        except TimeoutError:
            raise TemplateFailure("it takes too much time") from None
        except (EOFError, BrokenPipeError):
            raise TemplateFailure(_how_it_ended(process)) from None
        except (ValueError, RecursionError):
            raise TemplateFailure("the process that it runs in does not answer as it should") from None
        finally:
            if not whole:  # after an interrupt too: an answer left in the pipe would be taken for the next one's
                self._end()
                self._process = None
        if wanted not in answer:
            raise TemplateFailure(str(answer.get("error")))
        return answer[wanted]


def template_process(source: str) -> TemplateProcess:
    """The process of a template, which equal ones share; after a fork each side has its own.

    Raises:
        TemplateFailure, MachineError: as `TemplateProcess`.
    """
    return _shared(source, os.getpid())


@functools.lru_cache(maxsize=8)
def _shared(source: str, owner: int) -> TemplateProcess:  # noqa: ARG001 (part of the key)
    return TemplateProcess(source)


def _start_worker() -> subprocess.Popen[bytes]:
    try:
        return start_module("gguflora.tokenizer.template_worker", stderr=subprocess.DEVNULL, bufsize=0)
    except OSError as error:
        raise MachineError(
            f"A chat template runs in a process of its own, and none could be started ({error.strerror or error}): "
            "let this process start another, or give examples of prompt and completion."
        ) from error


def _exchange(process: subprocess.Popen[bytes], frame: bytes, deadline: float) -> bytes:
    """Send a message; the answer's bytes.

    Raises:
        TimeoutError: the deadline has passed.
        EOFError, BrokenPipeError: the process has ended.
        ValueError: its answer is too long.
    """
    assert process.stdin and process.stdout
    requests, replies = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(requests, False)
    rest = memoryview(frame)
    while rest:
        _wait(requests, select.POLLOUT, deadline)
        rest = rest[os.write(requests, rest) :]
    [length] = HEADER.unpack(_read(replies, HEADER.size, deadline))
    if length > MAX_REPLY:
        raise ValueError("too long")
    return _read(replies, length, deadline)


def _read(pipe: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(pipe, select.POLLIN, deadline)
        piece = os.read(pipe, min(size - len(data), _PIECE))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return "the process that it runs in gives no answer"
    if code == -signal.SIGXCPU:
        return "it takes too much time"
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"the process that it runs in {end}"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # else we are a fork, and the process is another's
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
