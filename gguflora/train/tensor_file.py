"""Tensors as a safetensors file, a piece after the other, so that none is copied.

The library's own `save` makes the whole file in memory, twice, while training's buffers are still there. Where a limit
on memory is near that fails, in Rust, and with RUST_BACKTRACE set the process hangs there (docs/log.md).

The format (github.com/huggingface/safetensors, README): the header's length, 8 bytes little-endian; the header, JSON
with dtype, shape and place of each tensor, filled with spaces to a multiple of 8; the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor


def pieces_of(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes in order.

    Args:
        tensors: float32, each contiguous; by name, in whose order they come.
    """
    header: dict[str, object] = {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        assert tensor.dtype is torch.float32
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in sorted(tensors.items()):
        yield tensor.numpy().reshape(-1).view(np.uint8).data
