"""The numbers that the file's metadata states, under the file's own names.

A key that llama.cpp requires is required here; where llama.cpp has a default, it is the same default
(src/llama-model.cpp:1380-1470, load_hparams).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile

MAX_BLOCKS = 1024

_HARMLESS: dict[str, object] = {
    "attention.causal": True,
    "expert_count": 0,
    "nextn_predict_layers": 0,
    "rope.scaling.attn_factor": 1.0,
}
"""Keys that llama.cpp reads in every architecture and that change the graph, with the one value that is supported."""

_OF_WINDOWED_HEADS = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
"""Sizes that layers with a window may have to themselves; supported where they are those of the other layers."""


@dataclass(frozen=True)
class HParams:
    """Hyperparameters of a model; lengths count elements, per-layer values are already the same for every layer."""

    block_count: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    key_length: int
    value_length: int
    layer_norm_rms_epsilon: float
    rope_dimension_count: int
    rope_freq_base: float
    rope_freq_scale: float
    sliding_window: int
    sliding_window_pattern: tuple[bool, ...] | int | None
    rope_freq_base_swa: float
    final_logit_softcapping: float


def read_hparams(gguf: GgufFile) -> HParams:
    """Read and check the hyperparameters of `gguf`.

    Raises:
        FileError: a required key is missing, or a value is impossible.
        ModelError: the file asks for something that is not supported yet (experts, YaRN, ...).
    """
    keys = _Keys(gguf)
    embedding = keys.count("embedding_length")
    heads = keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", embedding // heads)
    _refuse_unsupported(keys, head_dim)
    return HParams(
        block_count=keys.count("block_count", limit=MAX_BLOCKS),
        context_length=keys.count("context_length"),
        embedding_length=embedding,
        feed_forward_length=keys.count("feed_forward_length"),
        head_count=heads,
        head_count_kv=keys.divisor("attention.head_count_kv", heads),
        key_length=head_dim,
        value_length=keys.count("attention.value_length", embedding // heads),
        layer_norm_rms_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        rope_dimension_count=keys.count("rope.dimension_count", head_dim),
        rope_freq_base=keys.number("rope.freq_base", 10_000.0),
        rope_freq_scale=_freq_scale(keys),
        sliding_window=int(keys.number("attention.sliding_window", 0.0)),
        sliding_window_pattern=_window_pattern(keys),
        rope_freq_base_swa=keys.number("rope.freq_base_swa", 10_000.0),
        final_logit_softcapping=keys.number("final_logit_softcapping", 0.0),
    )


def _window_pattern(keys: _Keys) -> tuple[bool, ...] | int | None:
    """Which layers see a window only: one flag for each, or "all but the last of every n", or None if not said."""
    value = keys.metadata.get(keys.prefix + "attention.sliding_window_pattern")
    if value is None or type(value) is int:
        return value
    if isinstance(value, list) and len(value) >= keys.count("block_count"):
        return tuple(bool(flag) for flag in value)
    raise FileError(
        f"{keys.path}: {keys.prefix}attention.sliding_window_pattern is {value!r:.60}, not one flag a layer."
    )


def _freq_scale(keys: _Keys) -> float:
    # Linear scaling is llama.cpp's default type; the older key scale_linear is read when factor is absent.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0))
    scaled = keys.text("rope.scaling.type", "linear") == "linear" and factor
    return 1.0 / factor if scaled else 1.0


def _refuse_unsupported(keys: _Keys, head_dim: int) -> None:
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise ModelError(f"{keys.path}: rope scaling of type {scaling} is not supported yet.")
    for key, only in (_HARMLESS | dict.fromkeys(_OF_WINDOWED_HEADS, head_dim)).items():
        if (value := keys.get(key, only)) != only:
            raise ModelError(f"{keys.path}: {keys.prefix}{key} is {value!r}, which is not supported yet.")


class _Keys:
    """Looks up `<architecture>.<key>` and checks what it finds."""

    def __init__(self, gguf: GgufFile) -> None:
        self.path = gguf.path
        self.metadata = gguf.metadata
        self.prefix = gguf.architecture + "."

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise FileError(f"{self.path}: the metadata key {self.prefix}{key} is missing.")
        if isinstance(value, list):  # one value per layer
            if len(set(value)) != 1:
                raise ModelError(f"{self.path}: {self.prefix}{key} differs between layers, which is not supported yet.")
            return value[0]
        return value

    def text(self, key: str, default: str) -> str:
        return str(self.get(key, default))

    def count(self, key: str, default: int | None = None, limit: int = 2**31 - 1) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise FileError(f"{self.path}: {self.prefix}{key} is {value!r}, not a whole number from 1 to {limit}.")
        return value

    def divisor(self, key: str, whole: int) -> int:
        value = self.count(key, whole)
        if whole % value:
            raise FileError(f"{self.path}: {self.prefix}{key} is {value}, which does not divide {whole} heads.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        lowest = 0.0 if default == 0.0 else math.ulp(0.0)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < lowest:
            raise FileError(f"{self.path}: {self.prefix}{key} is {value!r}, not a number above 0.")
        return float(value)
