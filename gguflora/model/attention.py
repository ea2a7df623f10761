"""The attention half of a layer: norm, q/k/v, rope, attention, output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.arch import AttentionSpec
from gguflora.kernels.attention.reference import attention
from gguflora.kernels.norm.reference import rms_norm
from gguflora.kernels.rope.reference import rotate
from gguflora.model.dropout import Dropout, mask_of
from gguflora.model.linear import Linear
from gguflora.model.trace import Trace, untraced
from gguflora.model.weight import Weight


@dataclass(frozen=True)
class Attention:
    """The tensors of one layer's attention, beside the spec that says how they are used.

    Attributes:
        attn_q_norm: (h,) weights of the norm of each query head, attn_k_norm of each key head; None without.
        qkv_weight: ((H + 2K) h, D), attn_q's, attn_k's and attn_v's weights under each other
            (resident ones are views of it).
    """

    spec: AttentionSpec
    attn_q_norm: Tensor | None
    attn_k_norm: Tensor | None
    qkv_weight: Weight
    attn_q: Linear
    attn_k: Linear
    attn_v: Linear
    attn_output: Linear

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        document_starts: list[int],
        epsilon: float,
        dropout: Dropout | None = None,
        trace: Trace = untraced,
    ) -> Tensor:
        """Mix the positions of each document: x (T, D), normalised, to (T, D).

        Args:
            x: in the compute dtype.
            cos: (T, h/2), with sin the angles of each position.
            sin: (T, h/2).
            document_starts: where each document begins, and T at the end.
            epsilon: of the heads' norms.
            dropout: masks of what the pairs read, or None.
            trace: is told every intermediate.
        """
        spec, tokens = self.spec, x.shape[0]
        half_split = spec.rope.kind == "half_split"
        mask = mask_of(dropout, self.attn_q.name, x)
        q = self.attn_q(x, mask).view(tokens, spec.heads, spec.head_dim)
        k = self.attn_k(x, mask).view(tokens, spec.kv_heads, spec.head_dim)
        v = self.attn_v(x, mask).view(tokens, spec.kv_heads, spec.head_dim)
        trace("Qcur", q)
        trace("Kcur", k)
        trace("Vcur", v)
        if self.attn_q_norm is not None and self.attn_k_norm is not None:
            # norms are computed in the residual's precision, as all norms are
            q = rms_norm(q.to(cos.dtype), self.attn_q_norm, epsilon).to(x.dtype)
            k = rms_norm(k.to(cos.dtype), self.attn_k_norm, epsilon).to(x.dtype)
            trace("Qcur_normed", q)
            trace("Kcur_normed", k)
        q = rotate(q, cos, sin, half_split)
        k = rotate(k, cos, sin, half_split)
        trace("Qcur", q)
        trace("Kcur", k)
        mixed = attention(q, k, v, document_starts, spec.scale, spec.window)  # (T, H, h)
        mixed = mixed.reshape(tokens, -1)
        trace("kqv_out", mixed)
        return self.attn_output(mixed, mask_of(dropout, self.attn_output.name, mixed))
