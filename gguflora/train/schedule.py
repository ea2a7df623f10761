"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from gguflora.config import Schedule


def warmup_steps(given: int | None, total_steps: int) -> int:
    """Steps of warm-up: as given, else 3 % of all steps and at most 100."""
    return min(100, math.ceil(0.03 * total_steps)) if given is None else given


def learning_rate(step: int, total_steps: int, warmup: int, peak: float, schedule: Schedule) -> float:
    """The learning rate of update number `step`, counted from 1.

    It rises linearly to `peak` at step `warmup`, then falls to 0 just after the last step (cosine, linear) or stays
    (constant).
    """
    if step <= warmup:
        return peak * step / warmup
    progress = (step - 1 - warmup) / max(1, total_steps - warmup)  # 0 at the first step after the warm-up
    match schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return peak * (1 - progress)
        case "constant":
            return peak
