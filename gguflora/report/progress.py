"""How far encoding is, for people, where it takes long: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gguflora.report.console import duration

_QUIET = 1.0  # seconds of which nothing is said
_REDRAWN = 0.1  # seconds between two drawings of the bar
_LINES = 10.0  # seconds between two lines where there is no terminal


class EncodingProgress:
    """Shows progress on `console`, whose stream should be standard error; a context manager, since a bar must end.

    Args:
        console: where.
        clock: seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._begun = self._shown = clock()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def __call__(self, done: int, total: int) -> None:
        """Told how many examples of how many are encoded; with the first one it begins anew."""
        now = self._clock()
        if done == 1:
            self._end_bar()
            self._begun = self._shown = now
        if done >= total:
            self._end_bar()
        elif now - self._begun >= _QUIET and now - self._shown >= (_REDRAWN if self._console.is_terminal else _LINES):
            self._shown = now
            self._show(done, total, (now - self._begun) / done * (total - done))

    def _show(self, done: int, total: int, left: float) -> None:
        if not self._console.is_terminal:
            self._console.print(
                f"encoding: {done:,} of {total:,} examples, about {duration(left)} left",
                soft_wrap=True,
                highlight=False,
            )
            return
        if self._bar is None:
            bar = Progress(
                TextColumn("encoding"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f} examples"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                auto_refresh=False,
            )
            self._bar = bar, bar.add_task("", total=total, completed=done)
            bar.start()
        progress, task = self._bar
        progress.update(task, completed=done, total=total, refresh=True)

    def _end_bar(self) -> None:
        if self._bar:
            self._bar[0].stop()
            self._bar = None
