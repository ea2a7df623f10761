"""An opened GGUF: what its header says, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguflora.gguf.format import GgmlType
from gguflora.gguf.mapping import Part, drop_pages
from gguflora.gguf.metadata import Metadata


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it.

    Attributes:
        shape: rows first, as numpy and PyTorch have it: (out, in) for a linear layer. The file's own order, `ne`,
            is the reverse.
        offset: bytes from the start of the file.
        part: which of the model's files that is, from 0.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    part: int = 0

    @property
    def ne(self) -> tuple[int, ...]:
        """Dimensions in the file's order, the fastest first."""
        return self.shape[::-1]


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF, in one file or in several parts.

    Attributes:
        path: of the first part: what llama.cpp is given.
        metadata: the first part's.
        tensors: of all parts, by name.
        parts: its files, in order.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    parts: tuple[Part, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, the first word of the hyperparameters' keys."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def stamp(self) -> tuple[int, ...]:
        """Size, time of the last change in ns, and inode, of each part when it was opened."""
        return tuple(number for part in self.parts for number in part.stamp)

    @property
    def file_bytes(self) -> int:
        """Size of all parts on the disk."""
        return sum(len(part.buffer) for part in self.parts)

    def drop_pages(self) -> None:
        """Give back the memory that the bytes read so far take in this process; they can be read again."""
        for part in self.parts:
            drop_pages(part)

    def path_of(self, name: str) -> Path:
        """The file that holds tensor `name`."""
        return self.parts[self.tensors[name].part].path

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name` as they lie in its file: (nbytes,), read-only, not copied."""
        info = self.tensors[name]
        return np.frombuffer(self.parts[info.part].buffer, dtype=np.uint8, count=info.nbytes, offset=info.offset)
