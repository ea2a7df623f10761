"""A GGUF file written again with something changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguflora.gguf import GgufFile, Tensor, f32, write_gguf
from gguflora.gguf.writer import Value


def metadata_of(source: GgufFile) -> dict[str, Value]:
    """Every key with its type and value, as the writer takes them."""
    found = {}
    for key in source.metadata:
        kind = source.metadata.value_type(key)
        assert kind is not None
        found[key] = (kind, source.metadata[key])
    return found


def tensors_of(source: GgufFile) -> list[Tensor]:
    """Every tensor of an F32 file."""
    return [f32(name, source.raw(name).view("<f4").reshape(info.shape)) for name, info in source.tensors.items()]


def with_tensor(source: GgufFile, path: Path, name: str, values: npt.ArrayLike) -> None:
    """Write an F32 file again with one tensor more, or another in place of one it has."""
    kept = [tensor for tensor in tensors_of(source) if tensor.name != name]
    write_gguf(path, metadata_of(source), [*kept, f32(name, np.asarray(values))])
