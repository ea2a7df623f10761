"""The ways of training that are compared, and each as a process that takes one step when it is asked (turns.py)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from benchmarks.flops import step_flops
from benchmarks.phases import Clock, of_gguflora
from benchmarks.turns import Answer, serve
from benchmarks.workload import CONFIG, RANK, SCALE, Kind, Workload, fresh_pairs, open_workload, step_examples
from gguflora.data import Encoded
from gguflora.events import Event, StepDone
from gguflora.kernels.operations import choose_operations
from gguflora.model import Workspace, load_decoder, with_pairs
from gguflora.run.fitting import ROWS
from gguflora.run.setting import bound_product_caches, set_threads
from gguflora.train import Job, new_state, train
from gguflora.train.memory import peak_bytes

Step = Callable[[int], float]
"""Takes a step by its number and gives its loss; number 0 starts anew."""


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        dtype: float32 or bfloat16.
        packed: gguflora's weights stay in the file's blocks.
        kernels: of gguflora: auto, or torch for torch's own operations.
        recompute: gguflora's layers run again in the backward.
        padded: PEFT takes a step's examples as one padded batch; else one after the other.
        tcmalloc: the allocator is preloaded.
    """

    name: str
    by: Literal["gguflora", "PEFT"]
    dtype: str
    packed: bool = False
    kernels: str = "auto"
    recompute: bool = False
    padded: bool = False
    tcmalloc: bool = False


def versions(dtype: str) -> list[Contender]:
    """gguflora's ways, for a machine on which it computes in `dtype`; the first is what all others are held to."""
    return [
        Contender("gguflora", "gguflora", dtype),
        Contender("gguflora, torch's operations", "gguflora", dtype, kernels="torch"),
        Contender("gguflora, recomputed", "gguflora", dtype, recompute=True),
        Contender("gguflora, packed", "gguflora", dtype, packed=True),
        Contender("gguflora, packed, recomputed", "gguflora", dtype, packed=True, recompute=True),
    ]


def plain_peft(dtype: str) -> list[Contender]:
    """PEFT as the Trainer runs it, in float32 and in `dtype`.

    bfloat16 is left out where the processor emulates it, 60 times slower than float32.
    """
    return [Contender(f"PEFT {each}, padded", "PEFT", each, padded=True) for each in dict.fromkeys(("float32", dtype))]


def best_peft(dtype: str, tcmalloc: bool) -> Contender:
    """What may be PEFT's fastest setup: nothing is padded, and memory is handed out by tcmalloc."""
    name = f"PEFT {dtype}, one document at a time" + (", tcmalloc" if tcmalloc else "")
    return Contender(name, "PEFT", dtype, tcmalloc=tcmalloc)


def gguflora_step(contender: Contender, workload: Workload, clock: Clock) -> Step:
    """The training loop as it is, held still between two steps."""
    bound_product_caches()
    of_gguflora(clock)
    base = workload.base
    decoder = load_decoder(base.gguf, base.spec, getattr(torch, contender.dtype), contender.packed)
    limit = ROWS[0]
    work = Workspace(limit, choose_operations(decoder.dtype, contender.kernels)[0])
    running: Iterator[Event] = iter(())

    def take(number: int) -> float:
        nonlocal running
        if number == 0:
            pairs = fresh_pairs(workload)
            job = Job(with_pairs(decoder, pairs, SCALE), workload.encoded, [], workload.config, work)
            running = train(job, new_state(pairs, limit, contender.recompute), None, lambda: None)
        return next(event.loss for event in running if isinstance(event, StepDone))

    return take


def peft_step(contender: Contender, workload: Workload, clock: Clock) -> Step:
    """The usual loop: forward (with the loss), backward, clipping, torch's AdamW (fused)."""
    from benchmarks.peft_gemma3 import gemma3
    from benchmarks.peft_llama import copy_pairs, llama, with_peft

    base, start = workload.base, fresh_pairs(workload)
    build = gemma3 if base.gguf.architecture == "gemma3" else llama
    model = with_peft(build(base.gguf, base.spec, getattr(torch, contender.dtype)), base.spec, start, SCALE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = _adamw(parameters)

    def take(number: int) -> float:
        nonlocal optimiser
        if number == 0:
            copy_pairs(model, base.spec, start)
            optimiser = _adamw(parameters)
        examples = step_examples(workload, number)
        batches = clock.timed("data", _batches)(examples, contender.padded)
        optimiser.zero_grad()
        loss = sum(_backward(model, batch, clock) for batch in batches)
        clock.timed("update", torch.nn.utils.clip_grad_norm_)(parameters, CONFIG.max_grad_norm)
        clock.timed("update", optimiser.step)()
        return loss

    return take


def _adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay, fused=True)


def _batches(examples: list[Encoded], padded: bool) -> list[dict[str, Any]]:
    """A step's examples as transformers takes them; its loss is divided by the trained tokens of the whole step."""
    trained = sum(int((example.labels >= 0).sum()) for example in examples)
    groups = [examples] if padded else [[example] for example in examples]
    return [
        {
            "input_ids": _rows([example.tokens for example in group], 0),
            "labels": _rows([example.labels for example in group], -100),
            "attention_mask": _rows([example.tokens >= 0 for example in group], 0) if padded else None,
            "num_items_in_batch": trained,
        }
        for group in groups
    ]


def _rows(arrays: list[Any], padding: int) -> Tensor:
    tensors = [torch.from_numpy(array).long() for array in arrays]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def _backward(model: Any, batch: dict[str, Any], clock: Clock) -> float:
    loss = clock.timed("forward", model)(**batch).loss
    clock.timed("backward", loss.backward)()
    return float(loss.detach())


def timed_step(contender: Contender, workload: Workload) -> Callable[[int], Answer]:
    """A step's seconds, by phase too, and loss; what it was worth (tokens, operations); the process's peak so far."""
    clock = Clock()
    way = gguflora_step if contender.by == "gguflora" else peft_step
    take = way(contender, workload, clock)

    def answer(number: int) -> Answer:
        clock.read()
        started = time.perf_counter()
        loss = take(number)
        seconds = time.perf_counter() - started
        examples = step_examples(workload, number)
        return {
            "seconds": seconds,
            "phases": clock.read(),
            "loss": loss,
            "tokens": sum(len(example.tokens) for example in examples),
            "flops": step_flops(workload.base.spec, RANK, examples),
            "peak": peak_bytes(),
        }

    return answer


def command_line(contender: Contender, model: Path, kind: Kind) -> list[str]:
    """The arguments under which this module, as a program, is `contender`."""
    return [str(model), kind, json.dumps(asdict(contender))]


def main() -> None:
    """Serve."""
    set_threads(None)
    model, kind, contender = sys.argv[1:]
    if kind not in get_args(Kind):
        raise SystemExit(f"no such work: {kind}")
    serve(timed_step(Contender(**json.loads(contender)), open_workload(Path(model), cast(Kind, kind))))


if __name__ == "__main__":
    main()
