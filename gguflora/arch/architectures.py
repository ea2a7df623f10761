"""What only llama.cpp's code knows about each architecture: one row each.

A row states differences from the llama block alone:

    x = x + attn_output(softmax(rope(q) rope(k)^T * scale) v)    q, k, v = linear(rms_norm(x))
    x = x + ffn_down(silu(ffn_gate(y)) * ffn_up(y))              y = rms_norm(x)

Numbers come from the file (hparams.py), and so do tensors that may be there or not (specs.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["consecutive", "half_split"]
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        rope: which elements of a head turn together: neighbours (2i, 2i+1), or (i, i + dim/2).
            Source: llama_model_rope_type, llama.cpp src/llama-model.cpp:3023.
        rope_freqs: the file may divide the frequencies by a tensor of factors.
        qk_norm: queries and keys are normalised, head by head, before rope.
        post_norms: each branch is normalised again before it is added to the residual.
        activation: of the gate; gelu_tanh is the tanh form.
        scaled_embedding: token embeddings are times sqrt(width).
        window_pattern: of every so many layers all but the last see a window only, where the file names one.
        width_scaled_at: at this number of layers the scores are scaled by 1 / sqrt(width / heads).
    """

    name: str
    rope: RopeKind = "consecutive"
    rope_freqs: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    activation: Activation = "silu"
    scaled_embedding: bool = False
    window_pattern: int | None = None
    width_scaled_at: int | None = None


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama"),  # src/models/llama.cpp: Llama 1-3, Mistral, SmolLM2, Yi, ...
        Architecture("qwen2", rope="half_split", rope_freqs=False),  # src/models/qwen2.cpp
        Architecture("qwen3", rope="half_split", rope_freqs=False, qk_norm=True),  # src/models/qwen3.cpp
        Architecture(  # src/models/gemma3.cpp; the 27B, of 62 layers, has a scale of its own (:33)
            "gemma3",
            rope="half_split",
            rope_freqs=False,
            qk_norm=True,
            post_norms=True,
            activation="gelu_tanh",
            scaled_embedding=True,
            window_pattern=6,
            width_scaled_at=62,
        ),
    )
}
