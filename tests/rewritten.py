"""A GGUF file written again with something changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguflora.gguf import GgufFile, Tensor, f32, open_gguf, write_gguf
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
