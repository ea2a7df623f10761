"""Write a GGUF file: metadata, then tensors, atomically.

The layout is the one that reader.py draws; source: ggml/src/gguf.cpp, gguf_write_to_buf.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gguflora.gguf.format import (
    BLOCKS,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_TENSOR_NAME,
    SCALAR_CODES,
    GgmlType,
    ValueType,
)
from gguflora.storage import write_atomically

Scalar = str | bool | int | float
Value = tuple[ValueType, Scalar] | tuple[ValueType, Sequence[Scalar]]


@dataclass(frozen=True)
class Tensor:
    """A tensor to write.

    Attributes:
        shape: rows first, (out, in) for a linear layer.
        data: its values in the given type, in row order, of any dtype that has these bytes.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    data: npt.NDArray[np.generic]


def f32(name: str, values: npt.NDArray[np.floating]) -> Tensor:
    """A float32 tensor named `name` of any shape."""
    return Tensor(name, GgmlType.F32, values.shape, values.astype("<f4"))


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """Write `path` (GGUF version 3) with the given typed metadata and tensors, in their order.

    A list value is written as an array of its value type. Tensors are aligned as `general.alignment` in `metadata`
    says.

    Raises:
        MachineError: the system refused to write; an older file is then untouched.
        ValueError: a tensor's name, shape or size can't stand in a GGUF file (a bug of the caller).
    """
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise ValueError("two tensors have the same name")
    alignment = _alignment(metadata)
    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, (kind, value) in metadata.items():
        header += _string(key) + _typed(kind, value)
    offset = 0
    for tensor in tensors:
        header += _entry(tensor, offset)
        offset += tensor.data.nbytes + (-tensor.data.nbytes) % alignment

    def write(file: BinaryIO) -> None:
        file.write(header)
        _pad(file, alignment)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.data).data.cast("B"))
            _pad(file, alignment)

    write_atomically(path, write)


def _alignment(metadata: Mapping[str, Value]) -> int:
    _, alignment = metadata.get("general.alignment", (ValueType.UINT32, DEFAULT_ALIGNMENT))
    if not isinstance(alignment, int):
        raise ValueError(f"general.alignment is {alignment}")
    return alignment


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _scalar(kind: ValueType, value: Scalar) -> bytes:
    return _string(str(value)) if kind is ValueType.STRING else struct.pack("<" + SCALAR_CODES[kind], value)


def _typed(kind: ValueType, value: Scalar | Sequence[Scalar]) -> bytes:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return struct.pack("<I", kind) + _scalar(kind, value)
    head = struct.pack("<IIQ", ValueType.ARRAY, kind, len(value))
    return head + b"".join(_scalar(kind, element) for element in value)


def _entry(tensor: Tensor, offset: int) -> bytes:
    if len(tensor.name.encode()) > MAX_TENSOR_NAME:
        raise ValueError(f"tensor name {tensor.name} is longer than {MAX_TENSOR_NAME} bytes")
    if not 1 <= len(tensor.shape) <= MAX_DIMS or min(tensor.shape) < 1:
        raise ValueError(f"tensor {tensor.name} has the shape {tensor.shape}")
    block = BLOCKS[tensor.type]
    if tensor.shape[-1] % block.elements:
        raise ValueError(f"rows of tensor {tensor.name} of shape {tensor.shape} are no whole {tensor.type.name} blocks")
    if tensor.data.nbytes * block.elements != int(np.prod(tensor.shape)) * block.nbytes:
        raise ValueError(f"tensor {tensor.name} of shape {tensor.shape} can't have {tensor.data.nbytes} bytes")
    ne = tensor.shape[::-1]
    dims = struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
    return _string(tensor.name) + dims + struct.pack("<IQ", tensor.type, offset)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
