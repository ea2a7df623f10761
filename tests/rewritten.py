"""A GGUF file written again with something changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguflora.gguf import GgufFile, Tensor, ValueType, f32, open_gguf, write_gguf
from gguflora.gguf.writer import Value


def metadata_of(source: GgufFile) -> dict[str, Value]:
    """Every key with its type and value, as the writer takes them."""
    found = {}
    for key in source.metadata:
        kind = source.metadata.value_type(key)
        assert kind is not None
        found[key] = (kind, source.metadata[key])
    return found


def tensors_of(source: GgufFile) -> dict[str, Tensor]:
    """Every tensor of an F32 file, by name."""
    return {name: f32(name, source.raw(name).view("<f4").reshape(info.shape)) for name, info in source.tensors.items()}


def rewritten(
    source: GgufFile,
    path: Path,
    *,
    keys: Mapping[str, Value | None] | None = None,
    tensors: Mapping[str, npt.ArrayLike | None] | None = None,
) -> GgufFile:
    """Write an F32 file again with other, or more, keys and tensors; None leaves one out."""
    metadata: dict[str, Value | None] = {**metadata_of(source), **(keys or {})}
    arrays: dict[str, Tensor | None] = {**tensors_of(source)}
    for name, values in (tensors or {}).items():
        arrays[name] = None if values is None else f32(name, np.asarray(values))
    write_gguf(
        path,
        {key: value for key, value in metadata.items() if value is not None},
        [tensor for tensor in arrays.values() if tensor is not None],
    )
    return open_gguf(path)


def write_dequantised(source: GgufFile, path: Path) -> None:
    """Write `source` with every tensor in F32, its numbers made by gguf-py, and the same metadata."""
    all_f32 = 0  # llama.h, LLAMA_FTYPE_ALL_F32
    metadata = metadata_of(source) | {"general.file_type": (ValueType.UINT32, all_f32)}
    write_gguf(path, metadata, [_dequantised(source, name) for name in source.tensors])


def _dequantised(source: GgufFile, name: str) -> Tensor:
    info = source.tensors[name]
    rows = source.raw(name).reshape(int(np.prod(info.shape[:-1])), -1)
    return f32(name, gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(int(info.type))).reshape(info.shape))
