"""A LoRA adapter as llama.cpp loads it: pairs of tensors in a GGUF file of their own.

Format (llama.cpp src/llama-adapter.cpp:151-423): `general.type` = adapter, `general.architecture` = the base's,
`adapter.type` = lora, `adapter.lora.alpha` FLOAT32 (any other type aborts llama.cpp); tensors
`<base tensor>.lora_a` (rank, in) and `<base tensor>.lora_b` (out, rank). llama.cpp multiplies by alpha / rank.
Alpha 0 would mean "scale 1" there, so it is never written.

Keys of our own, which llama.cpp ignores, say which base the adapter belongs to, and with which template and options
conversations were rendered, where it was not the base's template alone. There is no time, host or path in
the file: the same training gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguflora.errors import FileError
from gguflora.gguf.file import GgufFile
from gguflora.gguf.format import GgmlType, ValueType
from gguflora.gguf.identity import Identity
from gguflora.gguf.reader import open_gguf
from gguflora.gguf.writer import Value, f32, write_gguf

Array = npt.NDArray[np.float32]

_A, _B = ".lora_a", ".lora_b"
_MAX_ALPHA = float(np.finfo(np.float32).max)
_MIN_ALPHA = float(np.finfo(np.float32).tiny)
_SHA256 = re.compile("[0-9a-f]{64}")
_CHAT_KEYS = {"options": "gguflora.template.options", "template": "gguflora.template.sha256"}
_BASE_KEYS = {
    "base": "gguflora.base.sha256",
    "tokenizer": "gguflora.base.tokenizer.sha256",
    "template": "gguflora.base.template.sha256",
}


@dataclass(frozen=True)
class Pair:
    """One adapted tensor's two matrices: lora_a (rank, in), lora_b (out, rank)."""

    lora_a: Array
    lora_b: Array

    @property
    def rank(self) -> int:
        """The pair's inner size."""
        return int(self.lora_a.shape[0])


@dataclass(frozen=True)
class ChatSetting:
    """How conversations were rendered in training, where it was not the base's template as it is.

    Attributes:
        options: the switches that the template was given, as a JSON object; empty for none.
        template: SHA-256, in hex, of the text of another template; empty for the base's own.
    """

    options: str = ""
    template: str = ""


@dataclass(frozen=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
        pairs: by the base tensor's name, e.g. blk.0.attn_q.weight.
        base: the identity of the base it was trained on; None in adapters of other programs.
        chat: how conversations were rendered; serve the adapter with the same.
    """

    architecture: str
    alpha: float
    pairs: Mapping[str, Pair]
    base: Identity | None = None
    chat: ChatSetting = ChatSetting()


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write `adapter` to `path`, atomically.

    Raises:
        FileError: it has no pair, a value is not finite, or alpha is not a positive float32: such a file would be
            harmful.
        MachineError: the system refused to write.
    """
    _check(path, adapter)
    metadata: dict[str, Value] = {
        "general.type": (ValueType.STRING, "adapter"),
        "general.architecture": (ValueType.STRING, adapter.architecture),
        "adapter.type": (ValueType.STRING, "lora"),
        "adapter.lora.alpha": (ValueType.FLOAT32, adapter.alpha),
    }
    if adapter.base:
        for field, key in _BASE_KEYS.items():
            metadata[key] = (ValueType.STRING, getattr(adapter.base, field))
    for field, key in _CHAT_KEYS.items():
        if value := getattr(adapter.chat, field):
            metadata[key] = (ValueType.STRING, value)
    tensors = []
    for name, pair in adapter.pairs.items():
        tensors += [f32(name + _A, pair.lora_a), f32(name + _B, pair.lora_b)]
    write_gguf(path, metadata, tensors)


def read_adapter(path: Path) -> Adapter:
    """Read a LoRA adapter file, of ours or another program's.

    Raises:
        FileError: it is no LoRA adapter, or a pair is incomplete, misshapen, of an unreadable type or not finite.
    """
    gguf = open_gguf(path)
    metadata = gguf.metadata
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise FileError(f"{path} is not a LoRA adapter: give the file that training wrote.")
    if "adapter.alora.invocation_tokens" in metadata:
        raise FileError(
            f"{path} is an activated LoRA, which acts after certain tokens alone: give a plain LoRA adapter."
        )
    adapter = Adapter(gguf.architecture, _read_alpha(gguf), _read_pairs(gguf), _read_base(gguf), _read_chat(gguf))
    _check(path, adapter)
    return adapter


def check_fits(path: Path, adapter: Adapter, base: GgufFile, identity: Identity) -> None:
    """Make sure that `adapter`, read from `path`, belongs to `base`.

    Raises:
        FileError: it was trained on another base, or a pair has no tensor or another shape there.
    """
    if adapter.architecture != base.architecture:
        raise FileError(
            f"{path} is an adapter for architecture {adapter.architecture!r}, but {base.path} is "
            f"{base.architecture!r}: give the GGUF that it was trained on."
        )
    if adapter.base is not None and adapter.base.base != identity.base:
        raise FileError(
            f"{path} was trained on another base (weights {adapter.base.base[:12]}) than {base.path} "
            f"({identity.base[:12]}): give the GGUF that it was trained on."
        )
    for name, pair in adapter.pairs.items():
        info = base.tensors.get(name)
        if info is None:
            raise FileError(
                f"{path} has a pair for {name}, a tensor that {base.path} does not have: give the GGUF that it was "
                f"trained on."
            )
        if (pair.lora_b.shape[0], pair.lora_a.shape[1]) != info.shape:
            raise FileError(
                f"{path}: the pair for {name} makes {(pair.lora_b.shape[0], pair.lora_a.shape[1])}, "
                f"but the tensor in {base.path} is {info.shape}: give the GGUF that it was trained on."
            )


def _invalid(path: Path, problem: str) -> FileError:
    return FileError(f"{path} is not a valid adapter: {problem}; write it again with the program that made it.")


def _read_alpha(gguf: GgufFile) -> float:
    key = "adapter.lora.alpha"
    alpha = gguf.metadata.get(key)
    if gguf.metadata.value_type(key) is not ValueType.FLOAT32 or not isinstance(alpha, float):
        raise _invalid(gguf.path, f"{key} is missing or not a FLOAT32")
    return alpha


def _read_base(gguf: GgufFile) -> Identity | None:
    hashes = {field: gguf.metadata.get(key) for field, key in _BASE_KEYS.items()}
    if all(value is None for value in hashes.values()):
        return None
    for field, value in hashes.items():
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise _invalid(gguf.path, f"{_BASE_KEYS[field]} is missing or not a SHA-256 in hex")
    return Identity(**{field: str(value) for field, value in hashes.items()})


def _read_chat(gguf: GgufFile) -> ChatSetting:
    options, template = (gguf.metadata.get(key, "") for key in _CHAT_KEYS.values())
    if not isinstance(options, str) or (options and not _is_json_object(options)):
        raise _invalid(gguf.path, f"{_CHAT_KEYS['options']} is not a JSON object")
    if not isinstance(template, str) or (template and not _SHA256.fullmatch(template)):
        raise _invalid(gguf.path, f"{_CHAT_KEYS['template']} is not a SHA-256 in hex")
    return ChatSetting(options, template)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_pairs(gguf: GgufFile) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for name in gguf.tensors:
        if name.endswith(_A):
            stem = name.removesuffix(_A)
            if stem + _B not in gguf.tensors:
                raise _invalid(gguf.path, f"{name} has no {stem + _B} beside it")
            pairs[stem] = Pair(_read_matrix(gguf, name), _read_matrix(gguf, stem + _B))
        elif not name.endswith(_B) or name.removesuffix(_B) + _A not in gguf.tensors:
            raise _invalid(gguf.path, f"{name} is not half of a pair")
    return pairs


def _read_matrix(gguf: GgufFile, name: str) -> Array:
    info = gguf.tensors[name]
    if len(info.shape) != 2:
        raise FileError(
            f"{gguf.path}: {name} has {len(info.shape)} dimensions, but only matrices can be read: give an adapter "
            f"without it."
        )
    raw = gguf.raw(name)
    match info.type:
        case GgmlType.F32:
            values = raw.view("<f4")
        case GgmlType.F16:
            values = raw.view("<f2").astype(np.float32)
        case GgmlType.BF16:
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            raise FileError(
                f"{gguf.path}: {name} has type {info.type.name}, but only F32, F16 and BF16 can be read: write the "
                f"adapter again in one of these."
            )
    return values.reshape(info.shape).astype(np.float32)


def _check(path: Path, adapter: Adapter) -> None:
    if not _MIN_ALPHA <= adapter.alpha <= _MAX_ALPHA:  # as FLOAT32 it would be 0, which means "scale 1", or infinite
        raise _invalid(path, f"alpha is {adapter.alpha}, not a float32 number above 0")
    if not adapter.pairs:
        raise _invalid(path, "it has no pair of lora_a and lora_b, so it would do nothing")
    for name, pair in adapter.pairs.items():
        if pair.lora_a.shape[0] != pair.lora_b.shape[1]:
            raise _invalid(
                path,
                f"the pair for {name} has rank {pair.lora_a.shape[0]} in lora_a and {pair.lora_b.shape[1]} in lora_b",
            )
        if not (np.isfinite(pair.lora_a).all() and np.isfinite(pair.lora_b).all()):
            raise _invalid(path, f"the pair for {name} has values that are not finite")
