"""Processes that take turns: each is asked by one line, and answers by one. Who is not asked sleeps.

A machine's speed changes by itself from minute to minute, so two contenders can be compared only step by step; and
each has a process of its own, because what a process held at most (its peak) is never given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
ROOT = Path(__file__).parents[1]


def serve(answer: Callable[[int], Answer]) -> None:
    """In the child: answer each number on standard input, until it ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    for line in sys.stdin:
        print(json.dumps(answer(int(line))), file=out, flush=True)


@contextmanager
def child(module: str, arguments: list[str], environment: Mapping[str, str]) -> Iterator[Callable[[int], Answer]]:
    """In the parent: a child process, as a function from a number to its answer.

    Raises:
        RuntimeError: the child ended before it answered; what it had to say stands on standard error.
    """
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdin and process.stdout

        def ask(number: int) -> Answer:
            print(number, file=process.stdin, flush=True)
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"{' '.join(command)} ended without an answer")
            answer: Answer = json.loads(line)
            return answer

        try:
            yield ask
        finally:
            process.kill()
