"""What `make bench` runs: each task with the ways of training that it is given to, in the order of the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender, best_peft, plain_peft, versions
from benchmarks.workload import Kind, gemma3, smollm2


@dataclass(frozen=True)
class Entrant:
    """A contender, and how many steps it takes turn about with the first one, those to warm up with among them."""

    contender: Contender
    steps: int


@dataclass(frozen=True)
class Task:
    """One kind of work on one model.

    Attributes:
        first: gguflora as it is, which everybody is held to.
        warm_up: steps of each race that are not counted.
    """

    name: str
    model: Path
    kind: Kind
    first: Contender
    others: list[Entrant]
    warm_up: int


def tasks(dtype: str, tcmalloc: bool, folder: Path) -> list[Task]:
    """All tasks, on a machine where gguflora computes in `dtype`.

    Args:
        dtype: float32 or bfloat16.
        tcmalloc: it is installed.
        folder: where a model may be put together.
    """
    first, *variants = versions(dtype)
    best = best_peft(dtype, tcmalloc)
    padded = plain_peft(dtype)
    chats = [Entrant(variant, 5) for variant in variants] + [Entrant(peft, 6) for peft in (*padded, best)]
    return [
        Task("SmolLM2-135M, 8 GSM8K chats a step", smollm2(), "chats", first, chats, warm_up=2),
        Task(
            "Gemma 3 270M (262,144 tokens), 8 GSM8K answers a step",
            gemma3(folder),
            "completions",
            first,
            [Entrant(padded[-1], 4), Entrant(best, 4)],
            warm_up=1,
        ),
        # A step of both takes more than two minutes.
        Task("SmolLM2-135M, one document of 8,000 tokens a step", smollm2(), "long", first, [Entrant(best, 2)], 1),
    ]
