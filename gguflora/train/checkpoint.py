"""What a run leaves on disk: adapters that llama.cpp loads, and the state to resume from.

    output folder/
      best_adapter_epoch_2.gguf   checkpoint_epoch_1.gguf   checkpoint-step-500.gguf   final_adapter.gguf
      state/step-00000500.safetensors   the tensors of State: pairs and both moments
      state/step-00000500.json          its numbers, the pairs' order, and a SHA-256 over all: written last

A state counts only when both files are there and the hash agrees, so a kill at any moment leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch

from gguflora.errors import FileError, MachineError
from gguflora.events import SavedKind
from gguflora.gguf import ChatSetting, Identity, write_adapter
from gguflora.model import LoraPair, to_adapter
from gguflora.storage import write_atomically, write_bytes
from gguflora.train.state import NUMBERS, State, named_parameters
from gguflora.train.tensor_file import pieces_of

SCHEMA = 1
KEPT_STATES = 2  # the newest, and the one before in case the newest is damaged
STATE_FOLDER = "state"


@dataclass(frozen=True)
class Checkpoints:
    """Where and how a run saves.

    Attributes:
        folder: the run's output folder.
        architecture, alpha, base, chat: what adapter files say beside their pairs.
    """

    folder: Path
    architecture: str
    alpha: float
    base: Identity
    chat: ChatSetting = ChatSetting()  # noqa: RUF009 (frozen)

    def save_adapter(self, state: State, kind: SavedKind, name: str) -> Path:
        """Write the adapter as it is under `name`; an older best adapter is removed when a better one stands.

        Raises:
            MachineError: the system refused.
        """
        path = self.folder / name
        write_adapter(path, to_adapter(state.pairs, self.architecture, self.alpha, self.base, self.chat))
        if kind == "best":
            _remove(older for older in self.folder.glob("best_adapter_epoch_*.gguf") if older != path)
        return path

    def save_state(self, state: State) -> None:
        """Write the state; others but the one before are removed when it stands.

        Later ones go too: they can only be damaged, or the run would have gone on from them.

        Raises:
            MachineError: the system refused.
        """
        folder = self.folder / STATE_FOLDER
        _make(folder)
        manifest = folder / f"step-{state.step:08d}.json"
        digest = hashlib.sha256()

        def write(file: BinaryIO) -> None:
            for piece in pieces_of(dict(_tensors(state))):
                file.write(piece)
                digest.update(piece)

        write_atomically(manifest.with_suffix(".safetensors"), write)
        numbers = {name: getattr(state, name) for name in NUMBERS}
        content = {"schema": SCHEMA, "pairs": list(state.pairs), "state": numbers}
        content["sha256"] = _with_content(digest, content)
        write_bytes(manifest, json.dumps(content, indent=1).encode())
        earlier = [path for path in _manifests(folder) if path < manifest and path.exists()]
        kept = {path.stem for path in (manifest, *earlier[: KEPT_STATES - 1])}
        # Sorted, the JSON of a state goes before its tensors.
        _remove(path for path in sorted(folder.glob("step-*")) if path.stem not in kept)


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
    finished_saves = 0
    for manifest in _manifests(folder / STATE_FOLDER):
        finished_saves += manifest.exists()
        try:
            return Loaded(_load(manifest), damaged)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            damaged.append(f"{manifest} ({getattr(error, 'strerror', None) or error})")
    if finished_saves:  # a lone tensor file is only what a kill during the first save leaves
        raise FileError(f"no saved state in {folder} is whole: {'; '.join(damaged)}.")
    return Loaded(None, damaged)


def _load(manifest: Path) -> State:
    content: dict[str, Any] = json.loads(manifest.read_text())
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, this version reads {SCHEMA}")
    data = manifest.with_suffix(".safetensors").read_bytes()
    if content.pop("sha256") != _with_content(hashlib.sha256(data), content):
        raise ValueError("it does not have the hash that was written down")
    tensors = safetensors.torch.load(data)
    # In the order of the run that saved it: sums over all pairs round differently in another one.
    pairs = {
        name: LoraPair(
            tensors[f"pair/{name}.lora_a"].requires_grad_(),
            tensors[f"pair/{name}.lora_b"].requires_grad_(),
        )
        for name in content["pairs"]
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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} could not be made: {error.strerror or error}.") from error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(f"{path} could not be removed: {error.strerror or error}.") from error


def _with_content(digest: hashlib._Hash, content: dict[str, Any]) -> str:
    """SHA-256, in hex, over a state's tensor file, which `digest` has seen, and what else its JSON holds."""
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _manifests(folder: Path) -> list[Path]:
    """Manifests of states, whole or not (then one may be missing), the newest step first."""
    return sorted({path.with_suffix(".json") for path in folder.glob("step-*")}, reverse=True)
