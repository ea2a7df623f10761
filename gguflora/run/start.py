"""Where a run begins: at a fresh state, or at the newest one that was saved in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguflora.errors import FileError
from gguflora.events import Event, Resumed, Warned
from gguflora.run.folder import check_same_run, read_record
from gguflora.train import State, load_newest_state, named_parameters


@dataclass(frozen=True)
class Start:
    """The state to begin with.

    Attributes:
        events: what to tell about it.
        reported: the run in the folder came to its very end, its summary included.
    """

    state: State
    events: list[Event]
    reported: bool


def resumed_start(folder: Path, fresh: State, record: dict[str, Any]) -> Start:
    """Go on in `folder` with what `record` describes, from `fresh` where nothing was saved yet.

    Raises:
        UsageError: the run in the folder was another one.
        FileError: what was saved is damaged.
    """
    old = read_record(folder)
    events: list[Event] = []
    if old is not None:
        events += [Warned(text) for text in check_same_run(folder, old, record)]
    loaded = load_newest_state(folder)
    events += [Warned(f"a damaged state was passed over: {name}") for name in loaded.damaged]
    if loaded.state is None:
        return Start(fresh, [*events, Warned("nothing was saved yet: starting from step 0.")], reported=False)
    _require_same_tensors(folder, loaded.state, fresh)
    events.append(Resumed(loaded.state.step, loaded.state.finished))
    return Start(loaded.state, events, reported=old is not None and "result" in old)


def _require_same_tensors(folder: Path, saved: State, fresh: State) -> None:
    """Refuse a state whose pairs are not those of this run, names and shapes."""
    before, now = ({name: tuple(p.shape) for name, p in named_parameters(state.pairs)} for state in (saved, fresh))
    different = sorted(before.items() ^ now.items())
    if different:
        raise FileError(f"{folder} can't be resumed: its saved state differs in {different[0][0]}; start again.")
