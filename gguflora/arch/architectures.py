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


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        rope: which elements of a head turn together: neighbours (2i, 2i+1), or (i, i + dim/2).
            Source: llama_model_rope_type, llama.cpp src/llama-model.cpp:3023.
    """

    name: str
    rope: RopeKind = "consecutive"


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama"),  # src/models/llama.cpp: Llama 1-3, Mistral, SmolLM2, Yi, ...
    )
}
