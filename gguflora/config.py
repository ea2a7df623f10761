"""Every option there is, each once: the command line builds its flags from these records, and Python users fill them.

A field's docstring is its help text; its unit stands there. Values are checked when a record is made, so a wrong
one is a UsageError before any file is opened.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gguflora.errors import UsageError

BATCH_SIZE = 4  # examples in a step where nothing is said
LEAST_ALPHA, MOST_ALPHA = 1e-30, 1e30  # well inside float32, which adapter files have
Schedule = Literal["cosine", "linear", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]
Weights = Literal["auto", "packed", "resident"]
Switch = Literal["on", "off"]
Choice = Literal["auto", "on", "off"]
Kernels = Literal["auto", "torch", "reference"]
TrainOn = Literal["all", "last", "everything"]
Overlong = Literal["drop", "truncate-left", "truncate-right", "split"]
OnBadRecord = Literal["error", "skip"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _positive(name: str, value: float | None) -> None:
    if value is not None:
        _require(math.isfinite(value) and value > 0, f"{name} must be a number above 0, not {value}.")


def _whole(name: str, value: int | None) -> None:
    if value is not None:
        _require(type(value) is int and value >= 1, f"{name} must be a whole number from 1 on, not {value}.")


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None:
        _require(math.isfinite(value) and value >= least, f"{name} must be at least {least}, not {value}.")


_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?([kmgt]i?b|b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1} | {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}


def bytes_of(text: str) -> int:
    """Bytes of a size as people write it, such as 1.5GB (10^9 bytes), 900 MiB (2^20) or 800000000; capitals are free.

    Raises:
        ValueError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[(match[2] or "b").lower()])


def _one_of(name: str, value: str, allowed: Any) -> None:
    choices = get_args(allowed)
    _require(value in choices, f"{name} must be one of {', '.join(choices)}, not {value}.")


@dataclass(frozen=True)
class LoraConfig:
    """What the adapter is.

    Raises:
        UsageError: a value is out of range.
    """

    rank: int = 16
    """Inner size of each pair: higher learns more and costs more memory."""

    alpha: float = 32.0
    """Strength: the pair's output is multiplied by alpha / rank."""

    target: tuple[str, ...] = ("all-linear",)
    """Tensors to train: all-linear, or GGUF names (attn_q) or their usual other names (q_proj); repeat for several."""

    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised scaling); the adapter file says so by its alpha."""

    dropout: float = 0.0
    """Share of what the pairs read that is dropped in training, 0 to below 1."""

    @property
    def file_alpha(self) -> float:
        """The alpha that adapter files say: llama.cpp divides it by the rank (arXiv:2312.03732 for the square root)."""
        return self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha

    @property
    def scale(self) -> float:
        """Factor of a pair's product."""
        return self.file_alpha / self.rank

    def __post_init__(self) -> None:
        _whole("--rank", self.rank)
        _require(0 <= self.dropout < 1, f"--dropout must be from 0 to below 1, not {self.dropout}.")
        _positive("--alpha", self.alpha)
        _require(LEAST_ALPHA < self.alpha < MOST_ALPHA, f"--alpha {self.alpha} is out of the range of an adapter file.")
        _require(isinstance(self.target, tuple), f"target must be a tuple of names, not {self.target!r}.")
        _require(len(self.target) > 0, "--target names no tensor: give all-linear or a name such as attn_q.")


@dataclass(frozen=True)
class DataConfig:
    """Which examples are trained, and which only measured.

    Raises:
        UsageError: a value is out of range, or both ways to choose a validation set are used.
    """

    max_length: int = 2048
    """Longest example in tokens; --overlong says what becomes of longer ones."""

    overlong: Overlong = "drop"
    """Longer examples: drop them, cut off their beginning (truncate-left) or end, or split them into windows."""

    overlap: int = 1
    """Tokens that each window of --overlong split repeats of the one before it, as context that is not trained."""

    train_on: TrainOn = "all"
    """all answers of the assistant, the last one of each example, or everything, questions and template included."""

    validation: str | Path | None = None
    """Data to measure on, named as DATA is, never trained."""

    validation_split: float | None = None
    """Share of the examples to measure on instead (0 to below 1); else 10 % of 100 or more, at most 200."""

    token_cache: Switch = "on"
    """Keep the tokens of large data for the next run, in the user's cache folder; off makes them anew."""

    def __post_init__(self) -> None:
        _at_least("--max-length", self.max_length, 2)
        _one_of("--overlong", self.overlong, Overlong)
        _require(
            type(self.overlap) is int and 1 <= self.overlap < self.max_length,
            f"--overlap must be a whole number from 1 to {self.max_length - 1}, less than --max-length, not "
            f"{self.overlap}.",
        )
        _require(
            self.overlap == 1 or self.overlong == "split", f"--overlap {self.overlap} needs --overlong split beside it."
        )
        _one_of("--train-on", self.train_on, TrainOn)
        _one_of("--token-cache", self.token_cache, Switch)
        if self.validation_split is not None:
            _require(
                0 <= self.validation_split < 1,
                f"--validation-split must be from 0 to below 1, not {self.validation_split}.",
            )
            _require(self.validation is None, "Give --validation or --validation-split, not both.")


@dataclass(frozen=True)
class ReadConfig:
    """How records of datasets become examples.

    Raises:
        UsageError: a value is not written as it must be.
    """

    column: tuple[str, ...] = ()
    """Other names of keys: prompt=question reads each record's `question` as its `prompt`; repeat for several."""

    source_weight: tuple[str, ...] = ()
    """FILE=0.5 multiplies the weights of the examples from FILE, written as among DATA; repeat for several."""

    on_bad_record: OnBadRecord = "error"
    """skip leaves out records that can't be used, counts them and names the first; error stops at the first."""

    @property
    def columns(self) -> dict[str, str]:
        """What `column` says: our key -> the records' key."""
        return {key: column for key, _, column in (text.partition("=") for text in self.column)}

    @property
    def source_weights(self) -> dict[str, float]:
        """What `source_weight` says: source, as it was named -> factor."""
        return {source: float(factor) for source, _, factor in (text.rpartition("=") for text in self.source_weight)}

    @property
    def arguments(self) -> list[str]:
        """What to write on a command line to have this."""
        pairs = [("--column", text) for text in self.column] + [
            ("--source-weight", text) for text in self.source_weight
        ]
        skip = [("--on-bad-record", "skip")] if self.on_bad_record == "skip" else []
        return [word for pair in (*pairs, *skip) for word in pair]

    def __post_init__(self) -> None:
        for text in self.column:
            key, _, column = text.partition("=")
            _require(bool(key and column), f"--column {text!r} must be a key and a column, such as prompt=question.")
        _require(len(self.columns) == len(self.column), "--column names two columns for one key: keep one of them.")
        for text in self.source_weight:
            source, _, factor = text.rpartition("=")
            _require(bool(source) and _is_weight(factor), f"--source-weight {text!r} must be like data.jsonl=0.5.")
        _require(
            len(self.source_weights) == len(self.source_weight),
            "--source-weight gives one source two weights: keep one of them.",
        )
        _require(
            self.on_bad_record in get_args(OnBadRecord),
            f"--on-bad-record must be error or skip, not {self.on_bad_record}.",
        )


def _is_weight(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


@dataclass(frozen=True)
class TemplateConfig:
    """How conversations become text: the chat template, and what it is told.

    Raises:
        UsageError: a switch is not NAME=VALUE, or is given twice.
    """

    chat_template: str | None = None
    """Template in place of the model's own: chatml, or a file with Jinja text."""

    template_option: tuple[str, ...] = ()
    """NAME=VALUE of a switch that the template reads, such as enable_thinking=false; repeat for several."""

    @property
    def switches(self) -> dict[str, Any]:
        """The options by name; a value that is JSON (false, 3, "a") is that, any other is text."""
        return {
            name: _json_or_text(value) for name, _, value in (option.partition("=") for option in self.template_option)
        }

    def __post_init__(self) -> None:
        names = [option.partition("=")[0] for option in self.template_option]
        for option, name in zip(self.template_option, names, strict=True):
            _require("=" in option and name != "", f"--template-option must be NAME=VALUE, not {option!r}.")
            _require(name not in ("messages", "tools"), f"--template-option can't give {name}: the data does.")
            _require(names.count(name) == 1, f"--template-option gives {name} twice; give it once.")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class TrainingConfig:
    """How the adapter is trained.

    Raises:
        UsageError: a value is out of range, or both sizes of a step are given.
    """

    learning_rate: float = 2e-4
    """Highest learning rate, reached after the warm-up."""

    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""

    warmup_steps: int | None = None
    """Steps over which the learning rate rises from 0. Without it: 3 % of the steps, at most 100."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm when they exceed it."""

    epochs: int = 3
    """Times that each example is trained."""

    max_steps: int | None = None
    """Stop after this many steps, whatever the epochs."""

    batch_size: int | None = None
    """Examples in a step (one update of the adapter); 4 without it and --batch-tokens."""

    batch_tokens: int | None = None
    """Tokens in a step instead: as many examples as fit, for long continued pre-training. A longer one has its own."""

    eval_steps: int | None = None
    """Measure the validation loss every so many steps, besides at each epoch's end."""

    save_steps: int = 500
    """Save a checkpoint every so many steps, besides at each fifth of the epochs."""

    logging_steps: int = 10
    """Print a line every so many steps where there is no terminal; the metrics file has every step."""

    seed: int = 0
    """Decides the order of the examples, the split and the first values of the adapter."""

    threads: int | None = None
    """Processor cores to use. Without it: those that this process may use."""

    def __post_init__(self) -> None:
        _positive("--learning-rate", self.learning_rate)
        _require(
            self.schedule in ("cosine", "linear", "constant"),
            f"--schedule must be cosine, linear or constant, not {self.schedule}.",
        )
        _at_least("--warmup-steps", self.warmup_steps, 0)
        _at_least("--weight-decay", self.weight_decay, 0)
        _positive("--max-grad-norm", self.max_grad_norm)
        for name in (
            "epochs",
            "max_steps",
            "batch_size",
            "batch_tokens",
            "eval_steps",
            "save_steps",
            "logging_steps",
            "threads",
        ):
            _whole("--" + name.replace("_", "-"), getattr(self, name))
        _at_least("--seed", self.seed, 0)
        _require(self.batch_size is None or self.batch_tokens is None, "Give --batch-size or --batch-tokens, not both.")
        if self.batch_size is None and self.batch_tokens is None:
            object.__setattr__(self, "batch_size", BATCH_SIZE)


@dataclass(frozen=True)
class ComputeConfig:
    """How the machine is used: speed and memory, not what is learned (but for the last bits).

    Raises:
        UsageError: a value is out of range.
    """

    dtype: Dtype = "auto"
    """Numbers of the linear layers and attention; auto is bfloat16 where the processor computes in it."""

    weights: Weights = "auto"
    """packed keeps the file's blocks and unpacks them at each use; resident unpacks once, faster and larger."""

    micro_batch_tokens: int | None = None
    """Most tokens computed at once; a longer example is computed alone. Without it 2048; less where memory is short."""

    packing: Switch = "on"
    """Several examples in one row, without padding and without seeing each other; off computes each alone."""

    recompute: Choice = "auto"
    """on computes layers again in the backward, auto where memory is short, instead of keeping what they need."""

    memory: str | None = None
    """Most memory to take, such as 1.5GB or 900MiB: rows, weights and recompute are chosen to fit, if left open."""

    kernels: Kernels = "auto"
    """auto compiles what lies between the matrix products, where it can (Linux); torch uses its operations for that;
    reference is plain autograd: slow, for comparison."""

    def __post_init__(self) -> None:
        _whole("--micro-batch-tokens", self.micro_batch_tokens)
        for name, allowed in (
            ("dtype", Dtype),
            ("weights", Weights),
            ("packing", Switch),
            ("recompute", Choice),
            ("kernels", Kernels),
        ):
            _one_of(f"--{name}", getattr(self, name), allowed)
        _require(
            not (self.kernels == "reference" and self.recompute == "on"),
            "--recompute on does not go with --kernels reference, which keeps what autograd keeps.",
        )
        if self.memory is not None:
            _require(self.kernels != "reference", "--memory does not go with --kernels reference, which has no plan.")
            _require(_is_size(self.memory), f"--memory must be a size such as 1.5GB or 900MiB, not {self.memory!r}.")

    @property
    def memory_bytes(self) -> int | None:
        """What `memory` says, in bytes."""
        return None if self.memory is None else bytes_of(self.memory)


def _is_size(text: str) -> bool:
    try:
        return bytes_of(text) > 0
    except ValueError:
        return False
