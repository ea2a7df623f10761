"""A model file for llama-server with another model's tokenizer and chat template and next to no weights.

llama-server renders a chat for a loaded model alone, and loading a large one takes its whole size from the disk. What
it renders depends on the template and on the tokenizer's metadata; both are the model's own here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gguflora.gguf import BLOCKS, GgmlType, GgufFile, Tensor, ValueType, f32, write_gguf
from gguflora.gguf.writer import Value

_WIDTH = 32  # of everything: one block of Q4_0
_TEMPLATE = "tokenizer.chat_template"
_HYPERPARAMETERS: dict[str, Value] = {
    "general.architecture": (ValueType.STRING, "llama"),
    "llama.block_count": (ValueType.UINT32, 1),
    "llama.context_length": (ValueType.UINT32, 8192),
    "llama.embedding_length": (ValueType.UINT32, _WIDTH),
    "llama.feed_forward_length": (ValueType.UINT32, _WIDTH),
    "llama.attention.head_count": (ValueType.UINT32, 1),
    "llama.attention.layer_norm_rms_epsilon": (ValueType.FLOAT32, 1e-5),
}
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_stand_in(path: Path, gguf: GgufFile, template: str, tool_template: str | None = None) -> None:
    """Write such a file: 20 bytes a token, and the tokenizer.

    Args:
        path: where to.
        gguf: whose tokenizer it gets.
        template: Jinja text.
        tool_template: for messages with tools, if there is another.

    Raises:
        FileError: the tokenizer's metadata can't be read.
        MachineError: the file can't be written.
    """
    metadata = _HYPERPARAMETERS | _tokenizer(gguf)
    metadata[_TEMPLATE] = (ValueType.STRING, template)
    if tool_template:
        metadata[f"{_TEMPLATE}.tool_use"] = (ValueType.STRING, tool_template)
    vocabulary = gguf.metadata.array_length("tokenizer.ggml.tokens") or 0
    tensors = [_zeros("token_embd.weight", vocabulary), _ones("output_norm.weight")]
    tensors += [_ones(f"blk.0.{stem}.weight") for stem in ("attn_norm", "ffn_norm")]
    tensors += [_zeros(f"blk.0.{stem}.weight", _WIDTH) for stem in _MATRICES]
    write_gguf(path, metadata, tensors)


def _tokenizer(gguf: GgufFile) -> dict[str, Value]:
    """The metadata that say how text becomes tokens."""
    metadata = gguf.metadata
    keys = [key for key in metadata if key.startswith("tokenizer.") and not key.startswith(_TEMPLATE)]
    values: dict[str, Any] = {key: (metadata.value_type(key), metadata[key]) for key in keys}
    return values


def _zeros(name: str, rows: int) -> Tensor:
    block = BLOCKS[GgmlType.Q4_0]
    data = np.zeros((rows, _WIDTH // block.elements * block.nbytes), np.uint8)
    return Tensor(name, GgmlType.Q4_0, (rows, _WIDTH), data)


def _ones(name: str) -> Tensor:
    return f32(name, np.ones(_WIDTH))
