"""Open a GGUF file that may come from a stranger: bounded, validated before anything is allocated.

The header is walked once with a cursor that never leaves the file. Limits follow llama.cpp's own loader
(ggml/src/gguf.cpp, gguf_init_from_file_impl) where it has them and are stricter where it has none.

    magic "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv times:      key (u64 length + bytes) | value type u32 | value
    n_tensors times: name | n_dims u32 | dims u64... | type u32 | offset u64
    padding to `general.alignment`, then the tensors' bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gguflora.errors import FileError, ModelError
from gguflora.gguf.cursor import Cursor, CutShort, invalid
from gguflora.gguf.file import GgufFile, TensorInfo
from gguflora.gguf.format import (
    BLOCKS,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_TENSOR_NAME,
    VERSIONS,
    GgmlType,
    ValueType,
)
from gguflora.gguf.mapping import Part, map_file
from gguflora.gguf.metadata import Metadata, read_metadata
from gguflora.gguf.split import joined, other_parts

MAX_KEY_VALUES = 65_536
MAX_TENSORS = 65_536
ALIGNMENTS = range(8, 65_537)


def open_gguf(path: str | Path) -> GgufFile:
    """Open and validate a GGUF file; given the first part of a model in several, all of them.

    Raises:
        FileError: it is missing, no regular file, no GGUF, cut short, breaks a rule of the format, or does not fit
            the other parts.
        ModelError: a tensor has a type that this version does not know.
    """
    first = _open_one(Path(path))
    return joined(first, [_open_one(part) for part in other_parts(first)])


def _open_one(path: Path) -> GgufFile:
    part = map_file(path)
    try:
        return _parse(part)
    except CutShort as cut:
        raise FileError(
            f"{path} is cut short: it ends at byte {len(part.buffer)}, inside {cut}; download or copy it again."
        ) from None


def _parse(part: Part) -> GgufFile:
    cursor = Cursor(part.path, part.buffer)
    version = _read_version(cursor)
    n_tensors = _bounded(cursor, cursor.u64("its header"), MAX_TENSORS, "tensors")
    n_kv = _bounded(cursor, cursor.u64("its header"), MAX_KEY_VALUES, "metadata keys")
    metadata = read_metadata(cursor, n_kv)
    alignment = _alignment(part.path, metadata)
    entries = [_read_entry(cursor, index) for index in range(n_tensors)]
    tensors = _place(cursor, entries, alignment)
    return GgufFile(part.path, version, metadata, MappingProxyType(tensors), (part,))


def _read_version(cursor: Cursor) -> int:
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC[: len(magic)]:
        raise FileError(f"{cursor.path} is not a GGUF file: {_looks_like(bytes(cursor.buffer[:64]))}.")
    cursor.advance(4, "its header")
    version = cursor.u32("its header")
    if version in VERSIONS:
        return version
    if version and version & 0xFFFF == 0:
        raise FileError(f"{cursor.path} is a big-endian GGUF: only little-endian files can be used, so get one.")
    raise FileError(
        f"{cursor.path} has GGUF version {version}: only versions 2 and 3 can be used, so get a file in one of these."
    )


def _looks_like(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, so fetch the real file with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, so the download went wrong"
    if start.startswith((b"ggml", b"lmgg", b"fmgg", b"tjgg")):
        return "it has llama.cpp's format from before 2023, so get a newer file"
    if start[:2] == b"PK" or start[8:10] == b'{"':
        return "it looks like a PyTorch or safetensors checkpoint, so convert it with llama.cpp first"
    return f"it starts with {start[:4]!r}, so give another file"


def _bounded(cursor: Cursor, count: int, limit: int, what: str) -> int:
    if count > limit:
        raise invalid(cursor.path, f"it claims {count} {what}, more than {limit} allowed")
    return count


def _alignment(path: Path, metadata: Metadata) -> int:
    if "general.alignment" not in metadata:
        return DEFAULT_ALIGNMENT
    alignment = metadata.integer("general.alignment", ValueType.UINT32)
    if alignment is None:
        raise invalid(path, "general.alignment is not of type UINT32")
    if alignment not in ALIGNMENTS or alignment & (alignment - 1):
        raise invalid(path, f"general.alignment is {alignment}, not a power of two from 8 to 65536")
    return alignment


@dataclass(frozen=True)
class _Entry:
    name: str
    type: GgmlType
    shape: tuple[int, ...]
    nbytes: int
    offset: int  # from the start of the data


def _read_entry(cursor: Cursor, index: int) -> _Entry:
    name = cursor.name(f"the name of tensor {index}", MAX_TENSOR_NAME)
    what = f"the description of tensor {name}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise invalid(cursor.path, f"tensor {name} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    ne = tuple(cursor.u64(what) for _ in range(n_dims))
    number = cursor.u32(what)
    offset = cursor.u64(what)
    try:
        kind = GgmlType(number)
    except ValueError:
        raise ModelError(
            f"{cursor.path}: tensor {name} has type {number}, which is not supported; get the model in another type."
        ) from None
    return _Entry(name, kind, ne[::-1], _nbytes(cursor.path, name, ne, kind), offset)


def _nbytes(path: Path, name: str, ne: tuple[int, ...], kind: GgmlType) -> int:
    elements = 1
    for dim in ne:
        elements *= dim
        if dim < 1 or elements >= 2**63:
            raise invalid(path, f"tensor {name} has the impossible dimensions {list(ne)}")
    block = BLOCKS[kind]
    if ne[0] % block.elements:
        raise invalid(
            path, f"rows of tensor {name} have {ne[0]} elements, not a multiple of {kind.name}'s {block.elements}"
        )
    return elements // block.elements * block.nbytes


def _place(cursor: Cursor, entries: list[_Entry], alignment: int) -> dict[str, TensorInfo]:
    """Offsets must be the running sum of the padded sizes: no overlap, no hole, nothing past the end."""
    start = _padded(cursor.position, alignment)
    expected = 0
    tensors: dict[str, TensorInfo] = {}
    for entry in entries:
        if entry.name in tensors:
            raise invalid(cursor.path, f"tensor {entry.name} stands in it twice")
        if entry.offset != expected:
            raise invalid(cursor.path, f"tensor {entry.name} starts at offset {entry.offset}, not {expected}")
        if start + expected + entry.nbytes > cursor.size:
            raise CutShort(f"tensor {entry.name}")
        tensors[entry.name] = TensorInfo(entry.name, entry.type, entry.shape, start + expected, entry.nbytes)
        expected = _padded(expected + entry.nbytes, alignment)
    return tensors


def _padded(position: int, alignment: int) -> int:
    return position + (-position) % alignment
