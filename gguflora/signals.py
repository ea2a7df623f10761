"""What becomes of the signals that ask a command for an end: SIGINT (Ctrl-C), SIGTERM, SIGHUP."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class SignalWatch:
    """Signals as they come; Python hands them to the main thread.

    Attributes:
        patient: the first one is remembered, so that a step can be finished, and a second one ends the process at
            once. Before, each one interrupts whatever is done, as KeyboardInterrupt(number).
        received: the name of the one that is remembered.
    """

    patient: bool = False
    received: str | None = None

    def stopped_by(self) -> str | None:
        """The name of the signal that was received, if one was."""
        return self.received

    def receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal."""
        if not self.patient:
            raise KeyboardInterrupt(number)
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def signal_watch() -> Iterator[SignalWatch]:
    """Watch the three signals; afterwards they are handled as they were before."""
    watch = SignalWatch()
    before = {number: signal.signal(number, watch.receive) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
