"""Out of memory in a step: the step is done again with less at once, and what comes out is what less at once gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gguflora.arch import resolve_targets
from gguflora.config import TrainingConfig
from gguflora.errors import MachineError
from gguflora.events import Event, Halved
from gguflora.model import Workspace, new_pairs, with_pairs
from gguflora.train import Job, State, named_parameters, new_state, train
from gguflora.train import loop as loop_module
from gguflora.train.room import is_out_of_memory, make_room
from gguflora.train.step import accumulate
from tests.tiny_training import Tiny, examples, tiny

RANK = 4
REFUSED = (
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
LENGTHS = (12, 5, 9, 14, 7, 3, 11, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("model"), torch.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(model: Tiny, micro_batch_tokens: int, recompute: bool = False) -> tuple[Job, State]:
    pairs = new_pairs(resolve_targets(model.spec, ("all-linear",), RANK), RANK, 0)
    state = new_state(pairs, micro_batch_tokens, recompute)
    config = TrainingConfig(learning_rate=1e-3, epochs=1)
    work = Workspace(micro_batch_tokens)
    job = Job(with_pairs(model.base, pairs, 2.0), examples(LENGTHS, (1.0,) * 8), [], config, work, dropout=0.1)
    return job, state


def run(job: Job, state: State) -> list[Event]:
    return list(train(job, state, None, lambda: None))


def values(state: State) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in named_parameters(state.pairs)}


def same(first: State, second: State) -> bool:
    a, b = values(first), values(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fails_when(monkeypatch: pytest.MonkeyPatch, too_much: Any) -> None:
    """Let a step fail half-way, after gradients of its first row are there, whenever `too_much(rows, method)`."""

    def limited(decoder: Any, rows: Any, method: Any, dropout: Any) -> Any:
        if too_much(rows, method):
            accumulate(decoder, rows[:1], method, dropout)
            raise RuntimeError(REFUSED)
        return accumulate(decoder, rows, method, dropout)

    monkeypatch.setattr(loop_module, "accumulate", limited)


def test_a_step_that_ran_out_of_memory_equals_one_that_began_with_the_smaller_limit(
    model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, smaller = start(model, 16)
    run(job, smaller)
    fails_when(monkeypatch, lambda rows, _: max(len(row.tokens) for row in rows) > 16)
    job, state = start(model, 64)
    halved = [event for event in run(job, state) if isinstance(event, Halved)]
    assert [event.micro_batch_tokens for event in halved] == [32, 16]
    assert state.micro_batch_tokens == 16
    assert same(state, smaller)


def test_when_every_row_is_one_example_layers_are_computed_again(model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_when(monkeypatch, lambda rows, method: len(rows) < 4 or not method.recompute)
    job, state = start(model, 64)
    run(job, state)
    assert state.recompute
    monkeypatch.undo()
    job, plain = start(model, state.micro_batch_tokens)
    run(job, plain)
    assert same(state, plain)  # recomputation changes no bit


def test_when_nothing_is_left_to_shorten_the_error_says_what_was_needed(
    model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_when(monkeypatch, lambda *_: True)
    job, state = start(model, 64)
    before = values(state)
    with pytest.raises(
        MachineError, match=r"step 1 on an example of \d+ tokens .*allocate 9 bytes.*--max-length"
    ) as error:
        run(job, state)
    assert error.value.exit_code == 4
    assert state.step == 0
    assert all(torch.equal(before[name], now) for name, now in values(state).items())


def test_an_error_that_is_no_lack_of_memory_is_not_taken_for_one(model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop_module, "accumulate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(*start(model, 64))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(REFUSED),
        RuntimeError("could not create a primitive"),  # oneDNN's, as it came under RLIMIT_DATA
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_a_real_refusal_of_the_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_making_room_gives_the_buffers_back(model: Tiny) -> None:
    _, state = start(model, 64)
    work = Workspace(64)
    work.take("x", (64, 8), torch.float32)
    make_room(state, work, [30, 30], MemoryError())
    assert work.nbytes == 0
    assert work.tokens == state.micro_batch_tokens < 60
