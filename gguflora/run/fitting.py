"""The first setting whose planned peak keeps to a limit, in the order of what it costs in speed.

Packed weights cost least: one or two hundredths of the speed at rows of 2,048 tokens (docs/performance.md). They are
unpacked once for each row, and products of fewer rows are slower, so shorter rows cost more; recomputation runs each
layer's forward twice, a quarter of a step. What was asked for explicitly stays, and a shorter row that saves nothing,
since an example is as long, is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gguflora.config import ComputeConfig
from gguflora.errors import UsageError
from gguflora.run.memory_plan import Load, MemoryPlan, Setting, row_tokens

ROWS = (2048, 1024, 512)
"""Tokens; below that a product loses its speed and little is saved."""

_LENGTHS = (1024, 512, 256, 128, 64, 32)  # of examples, for what to say when nothing fits

Planner = Callable[[Load, Setting], MemoryPlan]
"""memory_plan of a model."""


@dataclass(frozen=True)
class Fit:
    """A setting and its plan.

    Attributes:
        fastest: the plan of the fastest setting, which may be this one.
        fits: the peak is within the limit; else no setting's is, and this is the smallest.
    """

    setting: Setting
    plan: MemoryPlan
    fastest: MemoryPlan
    fits: bool


def fit(first: Setting, compute: ComputeConfig, load: Load, plan: Planner, limit: int) -> Fit:
    """The first setting from `first` on that takes no more than `limit` bytes; the smallest one where none does."""
    plans = {setting: plan(load, setting) for setting in settings(first, compute, load)}
    fitting = (setting for setting, planned in plans.items() if planned.peak <= limit)
    smallest = min(plans, key=lambda setting: plans[setting].peak)
    chosen = next(fitting, smallest)
    return Fit(chosen, plans[chosen], plans[first], plans[chosen].peak <= limit)


def settings(first: Setting, compute: ComputeConfig, load: Load) -> list[Setting]:
    """From the fastest setting to the smallest; each differs from the one before in one thing."""
    found = [first]
    if compute.weights == "auto" and not first.packed:
        found.append(replace(found[-1], packed=True))
    if compute.micro_batch_tokens is None:
        for rows in ROWS[1:]:
            if row_tokens(load, rows) < row_tokens(load, found[-1].rows):
                found.append(replace(found[-1], rows=rows))
    if compute.recompute == "auto":
        found.append(replace(found[-1], recompute=True))
    return found


def too_little(asked: str, limit: int, load: Load, plan: Planner, found: Fit) -> UsageError:
    """What to tell where the smallest setting takes more than the `asked` memory."""
    setting = found.setting
    smallest = [
        f"rows of at most {row_tokens(load, setting.rows)} tokens",
        "packed weights" if setting.packed else "resident weights",
        "layers computed again" if setting.recompute else "layers kept",
    ]
    ways = [f"--memory {-(-found.plan.peak // 10**7) * 10}MB", *_ways(limit, load, plan, setting)]
    return UsageError(
        f"--memory {asked} is too little: the smallest setting ({', '.join(smallest)}) needs "
        f"{found.plan.peak / 1e6:.0f} MB at its peak; give {' or '.join(ways)}."
    )


def _ways(limit: int, load: Load, plan: Planner, setting: Setting) -> Iterator[str]:
    """Options that would make the smallest setting fit: the first of each kind that does."""
    rank = max(load.ranks.values(), default=0)
    ranks = (rank >> shift for shift in range(1, rank.bit_length()))
    for smaller in ranks:
        ranked = replace(load, ranks={name: min(smaller, r) for name, r in load.ranks.items()})
        if plan(ranked, setting).peak <= limit:
            yield f"--rank {smaller}"
            break
    for length in _LENGTHS:
        shorter = replace(setting, rows=min(setting.rows, length))
        cut = replace(
            load,
            longest=None if load.longest is None else min(load.longest, length),
            measured_longest=min(load.measured_longest, length),
        )
        if plan(cut, shorter).peak <= limit:
            rows = f" --micro-batch-tokens {length}" if length < setting.rows else ""
            yield f"--max-length {length}{rows}"
            break
