"""Which base is this? Hashes that stay the same however the file is padded, split or renamed.

`base`: SHA-256 over every tensor's (name, type, dims, bytes), in name order. `tokenizer` and `template` have hashes
of their own, over their keys and values as they lie in the file, so that "the same weights with another template"
can be told from "another model".
Hashing reads the whole file, so the base's hash is kept in the user's cache under path, size, mtime and inode (of
each part, if it is in several), as they were when the file was opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguflora.errors import MachineError
from gguflora.gguf.file import GgufFile
from gguflora.storage import write_bytes

_TOKENIZER_PREFIX = "tokenizer.ggml."
_TEMPLATE_PREFIX = "tokenizer.chat_template"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """SHA-256 hashes, in hex, of a base's tensors, its tokenizer and its chat templates."""

    base: str
    tokenizer: str
    template: str


def identity_of(gguf: GgufFile) -> Identity:
    """The identity of an opened GGUF; the first time for a file it reads all of its bytes."""
    return Identity(
        base=_cached_base_hash(gguf),
        tokenizer=_metadata_hash(gguf, _TOKENIZER_PREFIX),
        template=_metadata_hash(gguf, _TEMPLATE_PREFIX),
    )


def base_hash(gguf: GgufFile) -> str:
    """SHA-256 over (name, type, dims, bytes) of each tensor, in name order, in hex."""
    digest = hashlib.sha256()
    for name in sorted(gguf.tensors):
        info = gguf.tensors[name]
        encoded = name.encode()
        digest.update(struct.pack("<Q", len(encoded)) + encoded)
        digest.update(struct.pack(f"<II{len(info.ne)}Q", info.type, len(info.ne), *info.ne))
        digest.update(gguf.raw(name).data)
    return digest.hexdigest()


def _metadata_hash(gguf: GgufFile, prefix: str) -> str:
    digest = hashlib.sha256()
    for key in sorted(key for key in gguf.metadata if key.startswith(prefix)):
        for part in (key.encode(), gguf.metadata.encoded(key)):
            digest.update(struct.pack("<Q", len(part)) + part)
    return digest.hexdigest()


def remembered_paths(base: str) -> list[Path]:
    """Files whose tensors are known to have the hash `base`, and that have not changed since they were hashed."""
    try:
        entries = [_read_cache(path) for path in sorted(cache_folder().glob("*.json"))]
    except RuntimeError:
        return []
    keys = [_read_key(entry) for entry in entries if entry.get("base") == base]
    return [Path(path) for path, *stamp in keys if _first_stamp(Path(path)) == stamp[:3]]


def _read_key(entry: dict[str, object]) -> list[Any]:
    try:
        key = json.loads(str(entry.get("key")))
    except ValueError:
        key = None
    return key if isinstance(key, list) and key and isinstance(key[0], str) else [""]


def _first_stamp(path: Path) -> list[int] | None:
    """The stamp of a model's first part, as Part has it; None where there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: no path at all, with a zero byte in it
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _cached_base_hash(gguf: GgufFile) -> str:
    key = json.dumps([str(gguf.path.resolve()), *gguf.stamp])
    try:
        path = cache_folder() / (hashlib.sha256(key.encode()).hexdigest() + ".json")
    except RuntimeError:  # no home folder, so no cache
        return base_hash(gguf)
    known = _read_cache(path)
    if known.get("key") == key and isinstance(known.get("base"), str):
        return str(known["base"])
    value = base_hash(gguf)
    _write_cache(path, {"key": key, "base": value})
    return value


def cache_folder() -> Path:
    """Where hashes of known files are kept.

    Raises:
        RuntimeError: there is no home folder, so no such place.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gguflora" / "identity"


def _read_cache(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # no entry, or one that a crash tore: hash again
    return content if isinstance(content, dict) else {}


def _write_cache(path: Path, entry: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(entry).encode())
    except (OSError, MachineError) as error:  # a cache that can't be written costs time, never the run
        _log.debug("identity cache not written: %s", error)
