"""The attention half of a layer as a pair of forward and backward; the reference is Attention.__call__.

    q, k, v = x W_q^T, x W_k^T, x W_v^T        q, k through the heads' norms (where there are any), then rope
    y = attention(q, k, v) W_o^T

Kept for the backward: q, k and v as the product gave them, what attention gives, and the pairs' inner products. The
heads' norms and rope are computed again: they cost less than the memory that their results would take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.arch import AttentionSpec
from gguflora.kernels.operations import Operations
from gguflora.model import groups
from gguflora.model.attention import Attention
from gguflora.model.dropout import Dropout
from gguflora.model.groups import Group, SavedPairs, single
from gguflora.model.workspace import Workspace


@dataclass(frozen=True)
class Row:
    """What attention needs to know of a packed row.

    Attributes:
        cos: (T, h/2), with sin the angles of this layer's rope.
        document_starts: where each document begins, and T at the end.
        dropout: masks of what the pairs read, or None.
    """

    cos: Tensor
    sin: Tensor
    document_starts: list[int]
    dropout: Dropout | None


@dataclass(frozen=True)
class SavedAttention:
    """qkv (T, (H + 2K) h) as the product gave them; mixed (T, H, h); and what attention and the pairs keep."""

    qkv: Tensor
    mixed: Tensor
    lse: Tensor | None
    qkv_pairs: SavedPairs | None
    output_pairs: SavedPairs | None


def forward(
    mixer: Attention, x: Tensor, row: Row, epsilon: float, work: Workspace, prefix: str, y: Tensor
) -> SavedAttention:
    """Write y (T, D) for the normalised x (T, D); what is kept goes to buffers named by `prefix`."""
    spec, tokens = mixer.spec, x.shape[0]
    group = _qkv(mixer)
    qkv = work.take(prefix + "qkv", (tokens, group.weight.shape[0]), x.dtype)
    qkv_pairs = groups.forward(group, x, row.dropout, work, prefix + "c_qkv", qkv)
    raw_q, raw_k, v = _heads(qkv, spec)
    q, _ = _turned(raw_q, mixer.attn_q_norm, row, spec, epsilon, work, "q")
    k, _ = _turned(raw_k, mixer.attn_k_norm, row, spec, epsilon, work, "k")
    mixed = work.take(prefix + "mixed", (tokens, spec.heads, spec.head_dim), x.dtype)
    lse = work.operations.attention.forward(q, k, v, row.document_starts, spec.scale, spec.window, mixed)
    flat = mixed.view(tokens, -1)
    output_pairs = groups.forward(single(mixer.attn_output), flat, row.dropout, work, prefix + "c_output", y)
    return SavedAttention(qkv, mixed, lse, qkv_pairs, output_pairs)


def backward(
    mixer: Attention,
    dy: Tensor,
    x: Tensor,
    row: Row,
    epsilon: float,
    saved: SavedAttention,
    work: Workspace,
    dx: Tensor,
) -> None:
    """Write dx (T, D) for dy (T, D), and add to the pairs' gradients."""
    spec = mixer.spec
    mixed = saved.mixed.view(x.shape[0], -1)
    d_mixed = work.take("d_mixed", tuple(mixed.shape), x.dtype)
    output, qkv = single(mixer.attn_output), _qkv(mixer)
    delta = groups.backward(output, dy, saved.output_pairs, row.dropout, work, d_mixed)
    groups.add_pair_gradients(output, mixed, delta, work)
    raw_q, raw_k, v = _heads(saved.qkv, spec)
    q, r_q = _turned(raw_q, mixer.attn_q_norm, row, spec, epsilon, work, "q")
    k, r_k = _turned(raw_k, mixer.attn_k_norm, row, spec, epsilon, work, "k")
    dq, dk, dv = work.operations.attention.backward(
        d_mixed.view_as(saved.mixed),
        saved.mixed,
        saved.lse,
        (q, k, v),
        row.document_starts,
        spec.scale,
        spec.window,
    )
    d_qkv = work.take("d_qkv", tuple(saved.qkv.shape), x.dtype)
    d_raw_q, d_raw_k, d_v = _heads(d_qkv, spec)
    _turn_back(dq, raw_q, r_q, mixer.attn_q_norm, row, spec, work.operations, d_raw_q)
    _turn_back(dk, raw_k, r_k, mixer.attn_k_norm, row, spec, work.operations, d_raw_k)
    d_v.copy_(dv)
    delta = groups.backward(qkv, d_qkv, saved.qkv_pairs, row.dropout, work, dx)
    groups.add_pair_gradients(qkv, x, delta, work)


def _qkv(mixer: Attention) -> Group:
    return Group((mixer.attn_q, mixer.attn_k, mixer.attn_v), mixer.qkv_weight)


def _heads(qkv: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q (T, H, h), k and v (T, K, h) in the group's output."""
    heads = qkv.view(qkv.shape[0], -1, spec.head_dim)
    q, k, v = torch.split(heads, [spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
    return q, k, v


def _turned(
    raw: Tensor, weight: Tensor | None, row: Row, spec: AttentionSpec, epsilon: float, work: Workspace, name: str
) -> tuple[Tensor, Tensor | None]:
    """Heads (T, H, h) through their norm, if any, and rope; with the norm's factors (T H, 1)."""
    r = None
    x = raw
    if weight is not None:
        tokens, heads, size = raw.shape
        r = work.take(name + "_r", (tokens, heads), row.cos.dtype).view(-1, 1)
        flat = raw.to(row.cos.dtype).reshape(-1, size)
        x = torch.empty(raw.shape, dtype=raw.dtype)
        work.operations.norm.forward(flat, weight, epsilon, x.view(-1, size), r)
    turned = work.take(name, tuple(raw.shape), raw.dtype)
    work.operations.rope.rotate(x, row.cos, row.sin, spec.rope.kind == "half_split", turned)
    return turned, r


def _turn_back(
    d_turned: Tensor,
    raw: Tensor,
    r: Tensor | None,
    weight: Tensor | None,
    row: Row,
    spec: AttentionSpec,
    operations: Operations,
    d_raw: Tensor,
) -> None:
    """Write the gradient of `_turned` to d_raw (T, H, h): rope by the opposite angle, then the norm's backward."""
    half_split = spec.rope.kind == "half_split"
    if weight is None or r is None:
        operations.rope.rotate(d_turned, row.cos, row.sin, half_split, d_raw, back=True)
        return
    d_normed = torch.empty(raw.shape, dtype=raw.dtype)
    operations.rope.rotate(d_turned, row.cos, row.sin, half_split, d_normed, back=True)
    size = raw.shape[-1]
    flat = raw.to(row.cos.dtype).reshape(-1, size)
    dx = torch.empty_like(d_normed.view(-1, size))
    operations.norm.backward(d_normed.view(-1, size), flat, weight, r, dx)
    d_raw.copy_(dx.view(raw.shape))
