"""A machine's first use of the compiled operations takes seconds: it comes before more is done, and is told."""

from __future__ import annotations

import logging
from collections.abc import Generator

import torch

from gguflora.events import Compiling, Event
from gguflora.kernels.first_use import SECONDS
from gguflora.kernels.operations import choose_operations, missing
from gguflora.report.console import compiling

_log = logging.getLogger(__name__)


def operations_ready(kernels: str) -> Generator[Event, None, list[Event]]:
    """Wait until the operations can be used at once; tells so before, where there is something to wait for.

    Args:
        kernels: the option.

    Returns:
        What was told.
    """
    due = missing() if kernels == "auto" else None
    if due is None:
        return []
    told = Compiling(SECONDS, due.kept)
    yield told
    choose_operations(torch.float32, kernels)  # for float32 and bfloat16 they are the same
    return [told]


def wait_for_operations(kernels: str = "auto") -> None:
    """The same for commands that tell no events: the wait is logged."""
    for event in operations_ready(kernels):
        if isinstance(event, Compiling):
            _log.warning("%s", compiling(event))
