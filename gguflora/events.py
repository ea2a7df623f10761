"""What happened, as frozen records: a run yields them, and whoever iterates shows or stores them.

Losses are mean negative log-likelihoods per trained token, in nats; times are seconds; memory is in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

SavedKind = Literal["best", "epoch", "step", "final", "stopped"]


@dataclass(frozen=True)
class ModelLoaded:
    """The base was opened and understood.

    Attributes:
        types: tensors by type, e.g. {"Q4_1": 210, "F32": 61}.
        base: SHA-256 of its tensors; `template` of its chat template.
    """

    path: str
    name: str
    architecture: str
    parameters: int
    file_bytes: int
    types: dict[str, int]
    base: str
    template: str


@dataclass(frozen=True)
class DataReady:
    """The examples were read, split, tokenised and masked.

    Attributes:
        skipped: how many examples were left out, by reason.
        skipped_examples: the first few of them, by reason, as file:line.
        lengths: tokens of the shortest, the median and the longest example.
        altered: how many examples are not trained as they stand (cut, or answers left out), by what was done;
            altered_examples: the first few of them.
    """

    train_examples: int
    validation_examples: int
    validation_from: str
    skipped: dict[str, int]
    skipped_examples: dict[str, list[str]]
    train_tokens: int
    trained_tokens: int
    lengths: tuple[int, int, int]
    altered: dict[str, int] = field(default_factory=dict)
    altered_examples: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiling:
    """Operations are being compiled, and the run waits for it.

    Attributes:
        seconds: that it takes on a quiet machine.
        once: it is done once for this machine; else nowhere can be written what was compiled, and each run does it.
    """

    seconds: float
    once: bool


@dataclass(frozen=True)
class FirstExample:
    """The first example as the model sees it: pieces of text, each with whether it is trained."""

    source: str
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class Planned:
    """What will be done, and why where it was chosen for the user.

    Attributes:
        pairs: adapted tensors by stem, e.g. {"attn_q": 30}.
        choices: what was chosen, each with its reason.
    """

    pairs: dict[str, int]
    trainable_parameters: int
    rank: int
    alpha: float
    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    choices: dict[str, str]


@dataclass(frozen=True)
class MemoryPlanned:
    """What training will take at its peak.

    Attributes:
        parts: bytes, by what takes them.
        usable: bytes that this process could have now, with those that it has.
        mapped: bytes of the model's file that are read through its map; the system takes them back when it needs to.
    """

    parts: dict[str, int]
    usable: int
    mapped: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Warned:
    """Something that could change the result, or that the user should know."""

    message: str


@dataclass(frozen=True)
class Resumed:
    """Training goes on from a saved state; `finished` if there is nothing left to do."""

    step: int
    finished: bool


@dataclass(frozen=True)
class StepDone:
    """One update was made. `gradient_norm` is the norm before clipping."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float
    seconds_left: float
    memory: int


@dataclass(frozen=True)
class FirstBatch:
    """The first step's examples were computed, but nothing was updated (--dry-run)."""

    examples: int
    rows: int
    tokens: int
    loss: float
    memory: int


@dataclass(frozen=True)
class Halved:
    """Memory ran out in a step, which is done again with shorter rows, or with layers computed again."""

    step: int
    micro_batch_tokens: int
    recompute: bool
    reason: str


@dataclass(frozen=True)
class EpochDone:
    """Every example of an epoch was trained once; `loss` is over its trained tokens."""

    step: int
    epoch: int
    loss: float


@dataclass(frozen=True)
class Evaluated:
    """The validation examples were measured; `best` if no earlier loss was lower."""

    step: int
    epoch: int
    loss: float
    tokens: int
    best: bool


@dataclass(frozen=True)
class Saved:
    """An adapter file (and, but for the best, the state to resume from) was written."""

    step: int
    kind: SavedKind
    path: str


@dataclass(frozen=True)
class Verified:
    """The adapter was loaded in the real llama.cpp and measured on the same tokens.

    Attributes:
        base_ours: loss without the adapter here; base_llamacpp: the same in llama.cpp.
        tuned_ours: loss with the adapter here; tuned_llamacpp: the same in llama.cpp.
        restored: with the adapter removed again, llama.cpp's losses of a few examples are the base's to the bit.
        allowed: how far the tuned losses may lie apart, since llama.cpp quantises activations.
        agrees: they lie within `allowed`, the gain over the base is the same within 5 %, and the base came back.
    """

    tokens: int
    base_ours: float
    base_llamacpp: float
    tuned_ours: float
    tuned_llamacpp: float
    restored: bool
    allowed: float
    agrees: bool


@dataclass(frozen=True)
class Answer:
    """One prompt answered by llama.cpp without and with the adapter; `expected` is the example's own answer."""

    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True)
class Finished:
    """The whole run is done, or was stopped (`stopped_by` names the signal).

    Attributes:
        final_loss: of the last epoch; best_loss: the best validation loss (else epoch loss).
        adapter: the file to serve.
    """

    step: int
    total_seconds: float
    final_loss: float | None
    best_loss: float | None
    best_epoch: int | None
    best_adapter: str | None
    total_steps: int
    milliseconds_per_step: float
    tokens_per_second: float
    adapter: str | None
    stopped_by: str | None = None


Event = (
    ModelLoaded
    | Compiling
    | DataReady
    | FirstExample
    | Planned
    | MemoryPlanned
    | Warned
    | Resumed
    | StepDone
    | FirstBatch
    | Halved
    | EpochDone
    | Evaluated
    | Saved
    | Verified
    | Answer
    | Finished
)

Progress = Callable[[int, int], None]
"""Told while examples become tokens: how many are done, and of how many. No event: nothing came of it yet."""


def unseen(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def as_dict(event: Event) -> dict[str, Any]:
    """An event as plain data for JSON: its fields, and its kind under "event" (step_done, evaluated, ...)."""
    name = "".join("_" + c.lower() if c.isupper() else c for c in type(event).__name__).lstrip("_")
    return {"event": name, **dataclasses.asdict(event)}
