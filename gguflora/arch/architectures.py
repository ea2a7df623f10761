"""What only llama.cpp's code knows about each architecture: one row each.

A row states differences from the llama block alone:

    x = x + attn_output(softmax(rope(q) rope(k)^T * scale) v)    q, k, v = linear(rms_norm(x))
    x = x + ffn_down(silu(ffn_gate(y)) * ffn_up(y))              y = rms_norm(x)

Numbers come from the file (hparams.py), and so do tensors that may be there or not (specs.py). How a row is added and
proved is in docs/add-an-architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RopeKind = Literal["consecutive", "half_split"]
Activation = Literal["silu", "gelu_tanh"]
Effect = Literal["acts", "ignored", "rejected", "aborts"]
"""What llama.cpp does with a pair on a tensor: applies it; loads it and computes without it; refuses the adapter; ends
the process. Only the first is of use."""

QKV = frozenset({"attn_q", "attn_k", "attn_v"})

PAIRS: dict[str, Effect] = {
    "attn_q": "acts",
    "attn_k": "acts",
    "attn_v": "acts",
    "attn_output": "acts",
    "ffn_gate": "acts",
    "ffn_up": "acts",
    "ffn_down": "acts",
    "output": "acts",
    "token_embd": "acts",
    "attn_norm": "ignored",
    "attn_q_norm": "ignored",
    "attn_k_norm": "ignored",
    "post_attention_norm": "ignored",
    "ffn_norm": "ignored",
    "post_ffw_norm": "ignored",
    "output_norm": "ignored",
    "rope_freqs": "ignored",
}
"""By stem, what llama.cpp does with a pair in the llama block. Each was tried, on every row, with xllamacpp
2026.10.11549, and is tried again by tests/parity/test_adapter_effect.py."""

TIED_PAIRS: dict[str, Effect] = {"output": "rejected", "token_embd": "aborts"}
"""The same where the output layer is the embedding."""


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        rope: which elements of a head turn together: neighbours (2i, 2i+1), or (i, i + dim/2).
            Source: llama_model_rope_type, llama.cpp src/llama-model.cpp:3023.
        rope_freqs: the file may divide the frequencies by a tensor of factors.
        biases: linear layers that may have a bias; with one anywhere else llama.cpp does not load the file.
        qk_norm: queries and keys are normalised, head by head, before rope.
        post_norms: each branch is normalised again before it is added to the residual.
        activation: of the gate; gelu_tanh is the tanh form.
        scaled_embedding: token embeddings are times sqrt(width).
        window_pattern: of every so many layers all but the last see a window only, where the file names one.
        width_scaled_at: at this number of layers the scores are scaled by 1 / sqrt(width / heads).
        pairs: what llama.cpp does with a pair, by stem; a stem that is not in it was never tried, and is refused.
    """

    name: str
    rope: RopeKind = "consecutive"
    rope_freqs: bool = True
    biases: frozenset[str] = QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    qk_norm: bool = False
    post_norms: bool = False
    activation: Activation = "silu"
    scaled_embedding: bool = False
    window_pattern: int | None = None
    width_scaled_at: int | None = None
    pairs: Mapping[str, Effect] = field(default_factory=lambda: PAIRS)


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama"),  # src/models/llama.cpp: Llama 1-3, Mistral, SmolLM2, Yi, ...
        Architecture("qwen2", rope="half_split", rope_freqs=False, biases=QKV),  # src/models/qwen2.cpp
        Architecture(  # src/models/qwen3.cpp
            "qwen3", rope="half_split", rope_freqs=False, biases=QKV, qk_norm=True
        ),
        Architecture(  # src/models/gemma3.cpp; the 27B, of 62 layers, has a scale of its own (:33)
            "gemma3",
            rope="half_split",
            rope_freqs=False,
            biases=QKV,
            qk_norm=True,
            post_norms=True,
            activation="gelu_tanh",
            scaled_embedding=True,
            window_pattern=6,
            width_scaled_at=62,
        ),
    )
}
