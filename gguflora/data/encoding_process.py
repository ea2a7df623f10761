"""Examples are made into tokens by several processes at once, and come back in order.

Rendering, cutting and labelling are Python's work, and one process does one piece of it at a time. So whole examples go
to other processes (encoding_worker.py), some at a time; a thread for each process waits for its answers.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from subprocess import Popen

from gguflora.data.example import Completion, Conversation, Example
from gguflora.data.preparation import Outcome, Preparation, PreparedOne
from gguflora.errors import MachineError
from gguflora.processes import start_module

CHUNK = 64  # examples that go to a process at a time, or
_CHUNK_CHARACTERS = 2**17
_AHEAD = 2  # chunks for each process that are under way or wait for their turn

Chunk = list[Example]
Process = Popen[bytes]


def in_processes(examples: Iterable[Example], how: Preparation, count: int) -> Iterator[tuple[Example, PreparedOne]]:
    """What becomes of each example, in order.

    An error comes when its example's turn does, also one that `examples` raises.

    Args:
        examples: taken some way ahead, and held until their turn.
        how: they become tokens.
        count: of processes.

    Raises:
        DataError: an example can't be encoded.
        MachineError: a process can't be started, or ended.
    """
    waiting: deque[tuple[Chunk, Future[list[Outcome]]]] = deque()
    failed: Exception | None = None
    with _processes(how, count) as ask:
        for chunk in _chunks(examples):
            if isinstance(chunk, Exception):
                failed = chunk
                break
            waiting.append((chunk, ask(chunk)))
            if len(waiting) > _AHEAD * count:
                yield from _turn(*waiting.popleft())
        while waiting:
            yield from _turn(*waiting.popleft())
    if failed:
        raise failed


def _turn(chunk: Chunk, answer: Future[list[Outcome]]) -> Iterator[tuple[Example, PreparedOne]]:
    for example, outcome in zip(chunk, answer.result(), strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        yield example, outcome


def _chunks(examples: Iterable[Example]) -> Iterator[Chunk | Exception]:
    """The examples some at a time, and last the error that they end with, if they do."""
    chunk: Chunk = []
    characters = 0
    try:
        for example in examples:
            chunk.append(example)
            characters += _characters(example)
            if len(chunk) == CHUNK or characters >= _CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
    except Exception as error:
        yield chunk
        yield error
        return
    yield chunk


def _characters(example: Example) -> int:
    match example.content:
        case Conversation(messages):
            return sum(len(message.content) for message in messages)
        case Completion(prompt, completion):
            return len(prompt) + len(completion)


@contextmanager
def _processes(how: Preparation, count: int) -> Iterator[Callable[[Chunk], Future[list[Outcome]]]]:
    """Processes that can be asked, each by a thread that waits for its answer."""
    idle: SimpleQueue[Process] = SimpleQueue()
    with ExitStack() as stack:
        processes = [stack.enter_context(_process()) for _ in range(count)]
        threads = ThreadPoolExecutor(count)
        stack.callback(threads.shutdown, cancel_futures=True)
        for process in processes:
            stack.callback(process.kill)  # first: it holds nothing that could be lost, and no thread waits for it then
        told = pickle.dumps(how, pickle.HIGHEST_PROTOCOL)
        for process in processes:  # by the threads, since a process reads only once it has started
            threads.submit(_introduce, process, told, idle)
        yield lambda chunk: threads.submit(_ask, idle, chunk)


@contextmanager
def _process() -> Iterator[Process]:
    try:
        process = start_module("gguflora.data.encoding_worker")
    except OSError as error:
        raise MachineError(
            f"Large data are encoded by several processes, and none could be started ({error.strerror or error}): let "
            "this process start another, or let it use one core (taskset -c 0)."
        ) from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        assert process.stdout
        process.stdout.close()
        with suppress(BrokenPipeError):  # what it did not read
            process.stdin.close()


def _introduce(process: Process, told: bytes, idle: SimpleQueue[Process]) -> None:
    with suppress(BrokenPipeError):  # it has ended: whoever asks it will say so
        _send(process, told)
    idle.put(process)


def _ask(idle: SimpleQueue[Process], chunk: Chunk) -> list[Outcome]:
    process = idle.get()
    try:
        _send(process, pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL))
        assert process.stdout
        answer: list[Outcome] = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise MachineError(
            f"A process that encodes examples ended (status {process.wait()}), perhaps for lack of memory: close other "
            "programs, or let this one use fewer cores (taskset)."
        ) from None
    finally:
        idle.put(process)
    return answer


def _send(process: Process, message: bytes) -> None:
    assert process.stdin
    process.stdin.write(message)
    process.stdin.flush()
