"""The attention half of a layer: norm, q/k/v, rope, attention, output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.arch import AttentionSpec
from gguflora.kernels import Kernels
from gguflora.model.linear import Linear


@dataclass(frozen=True)
class Attention:
    """The tensors of one layer's attention, beside the spec that says how they are used."""

    spec: AttentionSpec
    attn_q: Linear
    attn_k: Linear
    attn_v: Linear
    attn_output: Linear

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, document_starts: list[int], kernels: Kernels) -> Tensor:
        """Mix the positions of each document: x (T, D), normalised, to (T, D).

        Args:
            x: in the compute dtype.
            cos: (T, h/2), with sin the angles of each position.
            sin: (T, h/2).
            document_starts: where each document begins, and T at the end.
            kernels: the operations' versions.
        """
        spec, tokens = self.spec, x.shape[0]
        half_split = spec.rope.kind == "half_split"
        q = self.attn_q(x, kernels).view(tokens, spec.heads, spec.head_dim)
        k = self.attn_k(x, kernels).view(tokens, spec.kv_heads, spec.head_dim)
        v = self.attn_v(x, kernels).view(tokens, spec.kv_heads, spec.head_dim)
        q = kernels.rotate(q, cos, sin, half_split)
        k = kernels.rotate(k, cos, sin, half_split)
        mixed = kernels.attention(q, k, v, document_starts, spec.scale)  # (T, H, h)
        return self.attn_output(mixed.reshape(tokens, -1), kernels)
