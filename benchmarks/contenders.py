"""The ways of training that are compared, and each as a process that takes one step when it is asked (turns.py)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.flops import step_flops
from benchmarks.turns import Answer, peak_bytes, serve
from benchmarks.workload import CONFIG, RANK, SCALE, Workload, fresh_pairs, open_workload, step_examples
from gguflora.data import Encoded
from gguflora.events import Event, StepDone
from gguflora.kernels.operations import choose_operations
from gguflora.model import Workspace, load_decoder, with_pairs
from gguflora.run.fitting import ROWS
from gguflora.run.setting import bound_product_caches, set_threads
from gguflora.train import Job, new_state, train

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


def contenders(dtype: str, tcmalloc: bool) -> list[Contender]:
    """All of them, for a machine on which gguflora computes in `dtype`; the first is what the others are held to.

    PEFT in bfloat16 is left out where the processor emulates it, 60 times slower than float32.
    """
    plain = [Contender(f"PEFT {each}, padded", "PEFT", each, padded=True) for each in dict.fromkeys(("float32", dtype))]
    best = f"PEFT {dtype}, one document at a time" + (", tcmalloc" if tcmalloc else "")
    return [
        Contender("gguflora", "gguflora", dtype),
        Contender("gguflora, torch's operations", "gguflora", dtype, kernels="torch"),
        Contender("gguflora, recomputed", "gguflora", dtype, recompute=True),
        Contender("gguflora, packed", "gguflora", dtype, packed=True),
        Contender("gguflora, packed, recomputed", "gguflora", dtype, packed=True, recompute=True),
        *plain,
        Contender(best, "PEFT", dtype, tcmalloc=tcmalloc),
    ]


def gguflora_step(contender: Contender, workload: Workload) -> Step:
    """The training loop as it is, held still between two steps."""
    bound_product_caches()
    base = workload.base
    decoder = load_decoder(base.gguf, base.spec, getattr(torch, contender.dtype), contender.packed)
    limit = ROWS[0]
    work = Workspace(limit, choose_operations(decoder.dtype, contender.kernels)[0])
    running: Iterator[Event] = iter(())

    def take(number: int) -> float:
        nonlocal running
        if number == 0:
            pairs = fresh_pairs(workload)
            job = Job(with_pairs(decoder, pairs, SCALE), workload.encoded, [], CONFIG, work)
            running = train(job, new_state(pairs, limit, contender.recompute), None, lambda: None)
        return next(event.loss for event in running if isinstance(event, StepDone))

    return take


def peft_step(contender: Contender, workload: Workload) -> Step:
    """The usual loop: forward, backward, clipping, torch's AdamW (fused)."""
    from benchmarks.peft_llama import copy_pairs, llama, with_peft

    base, start = workload.base, fresh_pairs(workload)
    model = with_peft(llama(base.gguf, base.spec, getattr(torch, contender.dtype)), base.spec, start, SCALE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = _adamw(parameters)

    def take(number: int) -> float:
        nonlocal optimiser
        if number == 0:
            copy_pairs(model, base.spec, start)
            optimiser = _adamw(parameters)
        examples = step_examples(workload, number)
        optimiser.zero_grad()
        loss = sum(_backward(model, batch) for batch in _batches(examples, contender.padded))
        torch.nn.utils.clip_grad_norm_(parameters, CONFIG.max_grad_norm)
        optimiser.step()
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


def _backward(model: Any, batch: dict[str, Any]) -> float:
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach())


def timed_step(contender: Contender, workload: Workload) -> Callable[[int], Answer]:
    """A step's seconds and loss, what it was worth (tokens, operations), and the process's peak so far."""
    take = gguflora_step(contender, workload) if contender.by == "gguflora" else peft_step(contender, workload)

    def answer(number: int) -> Answer:
        started = time.perf_counter()
        loss = take(number)
        seconds = time.perf_counter() - started
        examples = step_examples(workload, number)
        return {
            "seconds": seconds,
            "loss": loss,
            "tokens": sum(len(example.tokens) for example in examples),
            "flops": step_flops(workload.base.spec, RANK, examples),
            "peak": peak_bytes(),
        }

    return answer


def command_line(contender: Contender, model: Path) -> list[str]:
    """The arguments under which this module, as a program, is `contender`."""
    return [str(model), json.dumps(asdict(contender))]


def main() -> None:
    """Serve."""
    set_threads(None)
    serve(timed_step(Contender(**json.loads(sys.argv[2])), open_workload(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
