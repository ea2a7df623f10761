"""Events as lines for people: sections that end in something to act on, and one live line while it trains.

On a terminal the live line is redrawn in place; elsewhere a plain line is printed every `logging_steps`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from gguflora.events import (
    Answer,
    Compiling,
    DataReady,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    FirstBatch,
    FirstExample,
    Halved,
    MemoryPlanned,
    ModelLoaded,
    Planned,
    Resumed,
    Saved,
    StepDone,
    Verified,
    Warned,
)
from gguflora.report.text import harmless

_SHOWN_TEXT = 600  # characters of an example's or answer's text
_NAMED = 3  # files of a kind
_USES = {
    "best_adapter_epoch_*.gguf": "the adapter of the lowest loss",
    "final_adapter.gguf": "the adapter after the last step",
    "checkpoint*.gguf": "adapters on the way",
    "metrics.jsonl": "everything that happened, for programs",
    "run.json": "what was decided, and the result",
    "state": "what --resume goes on from",
}
_MEASURED_STEPS = 3  # the first step is slower than the others: memory is taken, code is warmed up
_MB = 10**6


class ConsoleReport:
    """Shows a run's events on `console`; a context manager, since the live line must end when the run does."""

    def __init__(self, console: Console, logging_steps: int) -> None:
        self._console = console
        self._logging_steps = logging_steps
        self._live: Live | None = None
        self._validation: float | None = None
        self._shown = 0  # steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepDone):
            self._show_step(event)
            return
        if isinstance(event, Evaluated):
            self._validation = event.loss
        if isinstance(event, Verified | Answer | Finished):
            self._stop_live()
        for line in lines_of(event):
            self._print(line)

    def next_steps(
        self, model: Path, data: Sequence[str | Path], finished: Finished, *, serve: str = "", own: str = ""
    ) -> None:
        """Show the commands that make sense after a run."""
        for line in next_steps(model, data, finished, serve=serve, own=own):
            self._print(line)

    def _print(self, line: str) -> None:
        # Without emoji: rich would turn ":heart:" in an example into a picture.
        self._console.print(line, soft_wrap=True, emoji=False)

    def _show_step(self, event: StepDone) -> None:
        self._shown += 1
        line = step_line(event, self._validation)
        if not self._console.is_terminal:
            if event.step % self._logging_steps == 0 or event.step in (1, event.total_steps):
                self._print(line)
            self._show_time(event)
            return
        self._show_time(event)
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)

    def _show_time(self, event: StepDone) -> None:
        """The plan's last line, once the first steps have been measured."""
        if self._shown == _MEASURED_STEPS and event.step < event.total_steps:
            self._print(f"          about {duration(event.seconds_left)} of training left, as the first steps went")

    def _stop_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def step_line(event: StepDone, validation: float | None) -> str:
    """The live line: progress, loss, learning rate, gradient norm, speed, memory, time left."""
    parts = [
        f"step {event.step}/{event.total_steps}",
        f"epoch {event.epoch}",
        f"loss {event.loss:.4f}",
        f"validation {validation:.4f}" if validation is not None else "",
        f"lr {event.learning_rate:.2e}",
        f"gradient norm {event.gradient_norm:.3f}",
        f"{event.tokens_per_second:.0f} tok/s",
        f"{event.memory / _MB:.0f} MB",
        f"{duration(event.seconds_left)} left",
    ]
    return "  ".join(part for part in parts if part)


def lines_of(event: Event) -> list[str]:
    """The lines for an event other than a step, in rich's markup."""
    match event:
        case ModelLoaded():
            return _model(event)
        case Compiling():
            return [compiling(event)]
        case DataReady():
            return _data(event)
        case FirstExample():
            return _first_example(event)
        case Planned():
            return _plan(event)
        case MemoryPlanned():
            return _memory(event)
        case Verified():
            return _verified(event)
        case Answer():
            return _answer(event)
        case Finished():
            return _finished(event)
        case _:
            return [_short(event)]


def next_steps(
    model: Path, data: Sequence[str | Path], finished: Finished, *, serve: str = "", own: str = ""
) -> list[str]:
    """The files that a run made, and commands to use next, ready to paste; in rich's markup.

    Args:
        model: as the user named it.
        data: likewise, with the options that say how to read it.
        finished: how the run ended.
        serve: options of llama-server that make it render conversations as in training.
        own: the same as options of our commands.
    """
    if finished.adapter is None:
        return []
    if finished.stopped_by:
        return ["", "Go on with the same command and --resume."]
    folder = Path(finished.adapter).parent
    base, adapter = _quoted(model), _quoted(finished.adapter)
    serve, own = (_text(f" {options}" if options else "") for options in (serve, own))
    return [
        "",
        *_files(folder),
        "",
        "Next:",
        f"  llama-server -m {base} --lora {adapter}{serve}",
        f"  gguflora generate {base} --lora {adapter}{own} 'your prompt'",
        f"  gguflora eval {base} {' '.join(_quoted(path) for path in data)} --lora {adapter}{own}",
    ]


def _files(folder: Path) -> list[str]:
    """What lies in a run's folder now, each with its use."""
    lines = []
    for pattern, use in _USES.items():
        names = sorted(path.name for path in folder.glob(pattern))
        if names:
            shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            lines.append(f"          {shown}: {use}")
    return [f"[bold]Files[/]     in {_text(str(folder))}", *lines]


def _quoted(path: str | Path) -> str:
    return _text(shlex.quote(str(path)))


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(event: Event) -> str:
    match event:
        case Warned():
            return f"[yellow]warning:[/] {_text(event.message)}"
        case Resumed(finished=True):
            return f"This run was finished already, at step {event.step}: nothing is left to do."
        case Resumed():
            return f"Resumed from the state saved at step {event.step}."
        case EpochDone():
            return f"epoch {event.epoch} done: training loss {event.loss:.4f}"
        case Evaluated(step=0):
            return f"validation loss before training {event.loss:.4f} ({event.tokens} trained tokens)"
        case Evaluated():
            best = ", the best so far" if event.best else ""
            return f"validation loss {event.loss:.4f} after step {event.step}{best}"
        case Halved():
            return _halved(event)
        case FirstBatch():
            return (
                f"first batch: {event.examples} examples in {event.rows} rows, {event.tokens} tokens, "
                f"loss {event.loss:.4f}, {event.memory / _MB:.0f} MB; nothing was trained"
            )
        case Saved():
            return f"saved {_text(event.path)}"
        case _:
            return _text(repr(event))


def compiling(event: Compiling) -> str:
    """What is waited for, and how long."""
    if event.once:
        return f"compiling operations, once for this machine: about {duration(event.seconds)}"
    return (
        f"compiling operations, about {duration(event.seconds)} and at each run: numba finds no folder to keep them in "
        "(name one in NUMBA_CACHE_DIR)"
    )


def _halved(event: Halved) -> str:
    how = "layers are computed again" if event.recompute else f"rows have at most {event.micro_batch_tokens} tokens"
    return f"[yellow]memory ran out after step {event.step}[/]: from here on {how}; the step is done again"


def _model(event: ModelLoaded) -> list[str]:
    types = ", ".join(f"{count} {name}" for name, count in event.types.items())
    return [
        f"[bold]Model[/]     {_text(event.name)} ({event.architecture}, {event.parameters / 1e6:.0f}M parameters)",
        f"          {_text(event.path)}, {event.file_bytes / 1e6:.0f} MB: {types}",
        f"          weights {event.base[:12]}, chat template {event.template[:12]}",
    ]


def _data(event: DataReady) -> list[str]:
    share = event.trained_tokens / event.train_tokens
    shortest, median, longest = event.lengths
    lines = [
        f"[bold]Data[/]      {event.train_examples} examples to train, {event.validation_examples} to validate "
        f"({_text(event.validation_from)})",
        f"          {event.train_tokens} tokens an epoch, {share:.0%} of them trained; "
        f"lengths {shortest} to {longest}, median {median}",
    ]
    for reason, count in event.skipped.items():
        first = ", ".join(event.skipped_examples[reason])
        lines.append(f"          [yellow]skipped {count}[/]: {_text(reason)} ({_text(first)})")
    for what, count in event.altered.items():
        first = ", ".join(event.altered_examples[what])
        lines.append(f"          [yellow]changed {count}[/]: {_text(what)} ({_text(first)})")
    return lines


def _first_example(event: FirstExample) -> list[str]:
    text, room = "", _SHOWN_TEXT
    for piece, trained in event.pieces:
        shown = _text(piece[:room]) + ("" if len(piece) <= room else " ...")
        if room > 0:  # brackets as well, since plain text has no colours
            text += f"⟦[reverse]{shown}[/]⟧" if trained else shown
        room -= len(piece)
    return [f"[bold]Example[/]   {_text(event.source)}, as the model sees it; ⟦[reverse]this[/]⟧ is trained:", text]


def _plan(event: Planned) -> list[str]:
    pairs = ", ".join(f"{count} {stem}" for stem, count in event.pairs.items())
    lines = [
        f"[bold]Plan[/]      {sum(event.pairs.values())} pairs ({pairs}), rank {event.rank}, alpha {event.alpha:g}: "
        f"{event.trainable_parameters / 1e6:.1f}M trainable parameters",
        f"          {event.total_steps} steps, {event.steps_per_epoch} an epoch, {event.warmup_steps} of warm-up",
    ]
    return lines + [f"          {name}: {_text(value)}" for name, value in event.choices.items()]


def _memory(event: MemoryPlanned) -> list[str]:
    parts = ", ".join(f"{name} {size / _MB:.0f}" for name, size in event.parts.items())
    color = "bold" if event.total <= event.usable else "yellow"
    return [
        f"[{color}]Memory[/]    about {event.total / _MB:.0f} MB at the peak, of {event.usable / _MB:.0f} in reach:",
        f"          {parts}",
        f"          and {event.mapped / _MB:.0f} of the file's pages, which the system takes back when it needs them",
    ]


def _verified(event: Verified) -> list[str]:
    verdict = "[green]verified in llama.cpp[/]" if event.agrees else "[red]NOT verified in llama.cpp[/]"
    back = "is back to the bit" if event.restored else "did NOT come back"
    return [
        f"[bold]Check[/]     {verdict} on {event.tokens} trained tokens (loss here / in llama.cpp)",
        f"          without the adapter {event.base_ours:.4f} / {event.base_llamacpp:.4f}, "
        f"with it {event.tuned_ours:.4f} / {event.tuned_llamacpp:.4f}",
        f"          expected gap up to {event.allowed:.4f}: llama.cpp rounds activations on quantised weights",
        f"          with the adapter removed again the base {back}",
    ]


def _answer(event: Answer) -> list[str]:
    return [
        f"[bold]Asked[/]     {_shown(event.prompt)}",
        f"  expected  {_shown(event.expected)}",
        f"  before    {_shown(event.before)}",
        f"  [green]after[/]     {_shown(event.after)}",
    ]


def _finished(event: Finished) -> list[str]:
    title = f"[yellow]Stopped[/] by {event.stopped_by}" if event.stopped_by else "[bold]Done[/]"
    lines = [
        f"{title}      total time {duration(event.total_seconds)}, {event.total_steps} steps, "
        f"{event.milliseconds_per_step:.0f} ms a step, {event.tokens_per_second:.0f} tok/s",
    ]
    if event.final_loss is not None:
        lines.append(f"          final loss {event.final_loss:.4f} (training, last epoch)")
    if event.best_loss is not None:
        lines.append(f"          best loss {event.best_loss:.4f} (epoch {event.best_epoch})")
    if event.adapter:
        lines.append(f"          adapter {_text(event.adapter)}")
    return lines


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + " ..."
    return _text(short.strip(" \n").replace("\n", "\n            "))


def _text(text: str) -> str:
    """Text from outside, made harmless: no terminal control characters, no markup."""
    return escape(harmless(text, keep="\n"))
