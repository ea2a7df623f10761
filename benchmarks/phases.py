"""Where a step's time goes: data, forward, loss, backward, update.

The functions of each phase are wrapped from outside, so that training itself knows nothing of it. Where layers are
computed again, their second forward counts as backward, which it is part of.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gguflora.model import explicit
from gguflora.train import loop, step

PHASES = ("data", "forward", "loss", "backward", "update")
_OF_GGUFLORA: list[tuple[ModuleType, str, str]] = [
    (loop, "_batch", "data"),
    (loop, "micro_batches", "data"),
    (step, "packed_row", "data"),
    (explicit, "_embed", "forward"),
    (explicit, "_layer_forward", "forward"),
    (explicit, "_head", "loss"),
    (explicit, "_layer_backward", "backward"),
    (loop, "clip", "update"),
    (loop, "update", "update"),
]


class Clock:
    """Seconds by phase since it was last read; what no phase covers is not counted."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._behind_loss = False

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a phase."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            # Each row begins as data. A layer's forward behind its loss is the second one, for the backward.
            self._behind_loss = phase == "loss" or (self._behind_loss and phase != "data")
            again = phase == "forward" and self._behind_loss
            self._seconds["backward" if again else phase] += time.perf_counter() - started
            return result

        return wrapped

    def read(self) -> dict[str, float]:
        """The seconds, which begin anew."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


def of_gguflora(clock: Clock) -> None:
    """From now on the training loop's phases are timed."""
    for module, name, phase in _OF_GGUFLORA:
        setattr(module, name, clock.timed(phase, getattr(module, name)))
