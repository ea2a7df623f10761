"""The pairs that a run begins with: fresh ones, or those of an adapter to go on from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from gguflora.arch import canonical_targets, resolve_targets
from gguflora.config import LoraConfig
from gguflora.errors import FileError, UsageError
from gguflora.gguf import check_fits, read_adapter
from gguflora.model import LoraPair, from_adapter, new_pairs
from gguflora.run.opening import Base


def initial_pairs(
    base: Base, lora: LoraConfig, seed: int, adapter_path: Path | None
) -> tuple[LoraConfig, dict[str, LoraPair]]:
    """The fresh state's pairs, and the configuration that holds for them, its targets under the file's names.

    An adapter, ours or one of llama.cpp's convert_lora_to_gguf.py, decides rank, alpha and tensors; the options for
    these are then not looked at.

    Raises:
        UsageError, ModelError: a target can't be trained, or the rank does not fit.
        FileError: the adapter can't be read, belongs to another base, or mixes ranks.
    """
    if adapter_path is None:
        targets = resolve_targets(base.spec, lora.target, lora.rank)
        return replace(lora, target=canonical_targets(lora.target)), new_pairs(targets, lora.rank, seed)
    adapter = read_adapter(adapter_path)
    check_fits(adapter_path, adapter, base.gguf, base.identity)
    ranks = {pair.rank for pair in adapter.pairs.values()}
    if len(ranks) != 1:
        raise FileError(f"{adapter_path} mixes pairs of ranks {sorted(ranks)}, which can't be trained on yet.")
    rank = ranks.pop()
    if lora.rslora:
        raise UsageError("--rslora and --init-adapter exclude each other: the adapter says its own scale.")
    targets = resolve_targets(base.spec, tuple(adapter.pairs), rank)
    pairs = from_adapter(adapter)
    names = tuple(target.name for target in targets)
    return replace(lora, rank=rank, alpha=adapter.alpha, target=names), {name: pairs[name] for name in names}


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
