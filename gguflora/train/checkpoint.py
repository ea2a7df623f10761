"""What a run leaves on disk: adapters that llama.cpp loads, and the state to resume from.

    output folder/
      best_adapter_epoch_2.gguf   checkpoint_epoch_1.gguf   checkpoint-step-500.gguf   final_adapter.gguf
      state/step-00000500.safetensors   the tensors of State: pairs and both moments
      state/step-00000500.json          its numbers, and the SHA-256 of the file beside it: written last

A state counts only when its JSON is there and the hash agrees, so a kill at any moment leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from gguflora.errors import FileError
from gguflora.events import SavedKind
from gguflora.gguf import Identity, write_adapter
from gguflora.model import LoraPair, to_adapter
from gguflora.storage import write_bytes
from gguflora.train.state import NUMBERS, State, named_parameters

SCHEMA = 1
KEPT_STATES = 2  # the newest, and the one before in case the newest is damaged
STATE_FOLDER = "state"


@dataclass(frozen=True)
class Checkpoints:
    """Where and how a run saves.

    Attributes:
        folder: the run's output folder.
        architecture, alpha, base: what adapter files say beside their pairs.
    """

    folder: Path
    architecture: str
    alpha: float
    base: Identity

    def save_adapter(self, state: State, kind: SavedKind, name: str) -> Path:
        """Write the adapter as it is under `name`; an older best adapter is removed when a better one stands."""
        path = self.folder / name
        write_adapter(path, to_adapter(state.pairs, self.architecture, self.alpha, self.base))
        if kind == "best":
            for older in self.folder.glob("best_adapter_epoch_*.gguf"):
                if older != path:
                    older.unlink()
        return path

    def save_state(self, state: State) -> None:
        """Write the state; older ones but the last are removed only when the new one stands."""
        folder = self.folder / STATE_FOLDER
        folder.mkdir(exist_ok=True)
        stem = folder / f"step-{state.step:08d}"
        tensors = safetensors.torch.save(dict(_tensors(state)))
        write_bytes(stem.with_suffix(".safetensors"), tensors)
        numbers = {name: getattr(state, name) for name in NUMBERS}
        manifest = {"schema": SCHEMA, "sha256": hashlib.sha256(tensors).hexdigest(), "state": numbers}
        write_bytes(stem.with_suffix(".json"), json.dumps(manifest, indent=1).encode())
        for old in _manifests(folder)[KEPT_STATES:]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)


@dataclass(frozen=True)
class Loaded:
    """The newest whole state, or None where there is none; `damaged` names newer ones that could not be used."""

    state: State | None
    damaged: list[str]


def load_newest_state(folder: Path) -> Loaded:
    """Read the newest whole state of the run in `folder`.

    Raises:
        FileError: there are states, but none is whole.
    """
    damaged: list[str] = []
    for manifest in _manifests(folder / STATE_FOLDER):
        try:
            return Loaded(_load(manifest), damaged)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            damaged.append(f"{manifest} ({error})")
    if damaged:
        raise FileError(f"no saved state in {folder} is whole: {'; '.join(damaged)}.")
    return Loaded(None, [])


def _load(manifest: Path) -> State:
    content: dict[str, Any] = json.loads(manifest.read_text())
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, this version reads {SCHEMA}")
    data = manifest.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != content["sha256"]:
        raise ValueError("its tensors do not have the hash that was written down")
    tensors = safetensors.torch.load(data)
    names = [name.removeprefix("pair/") for name in tensors if name.startswith("pair/")]
    stems = [name.removesuffix(".lora_a") for name in names if name.endswith(".lora_a")]
    pairs = {
        stem: LoraPair(
            tensors[f"pair/{stem}.lora_a"].requires_grad_(),
            tensors[f"pair/{stem}.lora_b"].requires_grad_(),
        )
        for stem in stems
    }
    return State(
        pairs,
        exp_avg={name: tensors[f"exp_avg/{name}"] for name, _ in named_parameters(pairs)},
        exp_avg_sq={name: tensors[f"exp_avg_sq/{name}"] for name, _ in named_parameters(pairs)},
        **{name: content["state"][name] for name in NUMBERS},
    )


def _tensors(state: State) -> Iterator[tuple[str, Any]]:
    for name, parameter in named_parameters(state.pairs):
        yield f"pair/{name}", parameter.detach()
        yield f"exp_avg/{name}", state.exp_avg[name]
        yield f"exp_avg_sq/{name}", state.exp_avg_sq[name]


def _manifests(folder: Path) -> list[Path]:
    """Manifests of saved states, the newest step first."""
    return sorted(folder.glob("step-*.json"), reverse=True)
