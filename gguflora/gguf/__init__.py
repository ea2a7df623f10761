"""The GGUF container: open a base safely, know which one it is, read and write adapters."""

from gguflora.gguf.adapter import Adapter, ChatSetting, Pair, check_fits, read_adapter, write_adapter
from gguflora.gguf.file import GgufFile, TensorInfo
from gguflora.gguf.format import BLOCKS, GgmlType, ValueType
from gguflora.gguf.identity import Identity, cache_folder, identity_of, remembered_paths
from gguflora.gguf.metadata import Metadata
from gguflora.gguf.reader import open_gguf
from gguflora.gguf.writer import Tensor, f32, write_gguf

__all__ = [
    "BLOCKS",
    "Adapter",
    "ChatSetting",
    "GgmlType",
    "GgufFile",
    "Identity",
    "Metadata",
    "Pair",
    "Tensor",
    "TensorInfo",
    "ValueType",
    "cache_folder",
    "check_fits",
    "f32",
    "identity_of",
    "open_gguf",
    "read_adapter",
    "remembered_paths",
    "write_adapter",
    "write_gguf",
]
