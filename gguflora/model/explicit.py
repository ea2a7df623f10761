"""Loss and gradients of a packed row without autograd: the layers are walked forward, then backward.

The base is frozen, so a layer's backward needs little: its input, what its halves keep, and no gradient of any weight
but the pairs'. All of it stands in the buffers of a workspace. The reference, which this must equal, is
decoder.row_loss with autograd.

    forward    h_in -> x = norm(h_in) -> attention -> h_mid = h_in + (norm of) it -> the same with the ffn -> h_out
    backward   dh through the ffn half, added to dh; dh through the attention half, added to dh

With `recompute` a layer keeps its input alone, and its forward runs again before its backward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gguflora.kernels.head_loss import explicit as head
from gguflora.model import explicit_attention, explicit_ffn
from gguflora.model.decoder import Decoder, Layer, embed, rope_tables
from gguflora.model.dropout import mask_of
from gguflora.model.explicit_attention import Row, SavedAttention
from gguflora.model.explicit_ffn import SavedFfn
from gguflora.model.groups import add_gradients, single, stack_pairs
from gguflora.model.row import PackedRow
from gguflora.model.workspace import Workspace


@dataclass(frozen=True)
class SavedLayer:
    """What a layer's backward reads.

    Attributes:
        h_in: (T, D) residual; that between the halves is computed again from it and the first branch.
        r_attn: (T, 1) factors of the norm before attention; r_ffn: of that before the ffn.
        mixed_branch: (T, D) what attention gives, before its post norm; ffn_branch: likewise, None without post norm.
        r_post_ffw: (T, 1) factors of the ffn's post norm, None without.
    """

    h_in: Tensor
    r_attn: Tensor
    r_ffn: Tensor
    attention: SavedAttention
    ffn: SavedFfn
    mixed_branch: Tensor
    ffn_branch: Tensor | None
    r_post_ffw: Tensor | None


def row_gradients(
    decoder: Decoder, row: PackedRow, factor: float, work: Workspace, recompute: bool
) -> tuple[float, Tensor]:
    """Add the gradients of factor * sum(weights * nll) to the pairs.

    Returns:
        sum(weights * nll), and the nll (n,) of the labelled positions in their order.
    """
    rows = _rows(decoder, row)
    saved: list[SavedLayer] = []
    h = _embed(decoder, row, work)
    for index, layer in enumerate(decoder.layers):
        prefix = "" if recompute else f"{index}."
        layer_saved, h = _layer_forward(decoder, layer, h, rows[index], work, prefix, f"{index + 1}.h_in")
        saved.append(layer_saved)
    nll, dh = _head(decoder, row, h, factor, work)
    for index in reversed(range(len(decoder.layers))):
        layer = decoder.layers[index]
        if recompute:
            saved[index], _ = _layer_forward(decoder, layer, saved[index].h_in, rows[index], work, "", "h_again")
        _layer_backward(decoder, layer, dh, saved[index], rows[index], work)
    weighted = nll * row.weights[row.labels >= 0].to(nll.dtype)
    return float(weighted.sum(dtype=torch.float64)), nll


def row_nll(decoder: Decoder, row: PackedRow, work: Workspace) -> Tensor:
    """The nll (n,) of the labelled positions, in their order: nothing is dropped, nothing kept for a backward."""
    row = replace(row, dropout=None)
    rows = _rows(decoder, row)
    h = _embed(decoder, row, work)
    for index, layer in enumerate(decoder.layers):
        _, h = _layer_forward(decoder, layer, h, rows[index], work, "", f"{index % 2}.h_in")
    x, _, labels = _labelled(decoder, row, h, work)
    return head.nll(
        x,
        labels,
        work.dense(decoder.output.weight),
        stack_pairs(single(decoder.output), decoder.dtype),
        decoder.softcap,
        work.operations,
    )


def _rows(decoder: Decoder, row: PackedRow) -> list[Row]:
    """The row as each layer's attention sees it: the layers' ropes may differ."""
    tables = rope_tables(decoder, row.positions)
    by_spec = {spec: Row(cos, sin, row.document_starts, row.dropout) for spec, (cos, sin) in tables.items()}
    return [by_spec[layer.mixer.spec.rope] for layer in decoder.layers]


def _embed(decoder: Decoder, row: PackedRow, work: Workspace) -> Tensor:
    rows = embed(decoder, row.tokens)
    return work.take("0.h_in", tuple(rows.shape), rows.dtype).copy_(rows)


def _layer_forward(
    decoder: Decoder, layer: Layer, h_in: Tensor, row: Row, work: Workspace, prefix: str, name_out: str
) -> tuple[SavedLayer, Tensor]:
    """One layer: gives what its backward reads, and h_out (T, D) in the buffer `name_out`."""
    x, r_attn = _norm(decoder, h_in, layer.attn_norm, work, prefix + "r_attn")
    mixed_branch = work.take(prefix + "mixed_branch", tuple(x.shape), x.dtype)
    attention = explicit_attention.forward(layer.mixer, x, row, decoder.epsilon, work, prefix, mixed_branch)
    h_mid, _ = _between(decoder, layer, h_in, mixed_branch, work)
    x, r_ffn = _norm(decoder, h_mid, layer.ffn_norm, work, prefix + "r_ffn")
    y = work.take(prefix + "ffn_branch" if layer.post_ffw_norm is not None else "y", tuple(x.shape), x.dtype)
    ffn = explicit_ffn.forward(layer.ffn, x, row.dropout, work, prefix, y)
    h_out = work.take(name_out, tuple(h_in.shape), h_in.dtype)
    r_post_ffw = _add(decoder, h_mid, y, layer.post_ffw_norm, work, prefix + "r_post_ffw", h_out)
    ffn_branch = y if layer.post_ffw_norm is not None else None
    return SavedLayer(h_in, r_attn, r_ffn, attention, ffn, mixed_branch, ffn_branch, r_post_ffw), h_out


def _layer_backward(decoder: Decoder, layer: Layer, dh: Tensor, saved: SavedLayer, row: Row, work: Workspace) -> None:
    """Turn dh (T, D) of the layer's output into that of its input, in place, and add to the pairs' gradients."""
    norm = work.operations.norm
    dx = work.take("dx", tuple(dh.shape), decoder.dtype)
    x = work.take("x", tuple(dh.shape), decoder.dtype)
    dy = _branch_gradient(dh, saved.ffn_branch, layer.post_ffw_norm, saved.r_post_ffw, work, decoder.dtype)
    h_mid, r_post_attention = _between(decoder, layer, saved.h_in, saved.mixed_branch, work)
    norm.apply(h_mid, layer.ffn_norm, saved.r_ffn, x)
    explicit_ffn.backward(layer.ffn, dy, x, row.dropout, saved.ffn, work, dx)
    norm.backward(dx, h_mid, layer.ffn_norm, saved.r_ffn, dh, add=True)
    dy = _branch_gradient(dh, saved.mixed_branch, layer.post_attention_norm, r_post_attention, work, decoder.dtype)
    norm.apply(saved.h_in, layer.attn_norm, saved.r_attn, x)
    explicit_attention.backward(layer.mixer, dy, x, row, decoder.epsilon, saved.attention, work, dx)
    norm.backward(dx, saved.h_in, layer.attn_norm, saved.r_attn, dh, add=True)


def _between(
    decoder: Decoder, layer: Layer, h_in: Tensor, mixed_branch: Tensor, work: Workspace
) -> tuple[Tensor, Tensor | None]:
    """The residual (T, D) between a layer's halves, and the factors (T, 1) of attention's post norm, None without."""
    h_mid = work.take("h_mid", tuple(h_in.shape), h_in.dtype)
    r = _add(decoder, h_in, mixed_branch, layer.post_attention_norm, work, "r_post_attention", h_mid)
    return h_mid, r


def _head(decoder: Decoder, row: PackedRow, h: Tensor, factor: float, work: Workspace) -> tuple[Tensor, Tensor]:
    """nll (n,) of the labelled positions, and dh (T, D) of the last layer's output."""
    x, r, labels = _labelled(decoder, row, h, work)
    labelled = row.labelled
    weights = row.weights[labelled].to(decoder.residual_dtype) * factor
    pairs = stack_pairs(single(decoder.output), decoder.dtype)
    mask = None if pairs is None else mask_of(row.dropout, decoder.output.name, h)
    nll, gradients = head.forward_backward(
        x,
        labels,
        weights,
        work.dense(decoder.output.weight),
        pairs,
        decoder.softcap,
        work.operations,
        None if mask is None else mask[labelled - 1].to(x.dtype),
    )
    if gradients.da is not None and gradients.db is not None:
        add_gradients(single(decoder.output), gradients.da, (gradients.db,))
    before = labelled - 1
    dh = work.take("dh", tuple(h.shape), h.dtype).zero_()
    # A position is before at most one labelled one, so no two rows fall together.
    d_states = torch.empty_like(h[before])
    work.operations.norm.backward(gradients.dx, h[before], decoder.output_norm, r, d_states)
    dh[before] = d_states
    return nll, dh


def _labelled(decoder: Decoder, row: PackedRow, h: Tensor, work: Workspace) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised states x (n, D) that predict the labelled positions, the norm's r (n, 1), and the labels (n,)."""
    labelled = row.labelled
    states = h[labelled - 1]  # the state before a token predicts it
    x = work.take("head_x", tuple(states.shape), decoder.dtype)
    r = work.take("head_r", (states.shape[0], 1), h.dtype)
    work.operations.norm.forward(states, decoder.output_norm, decoder.epsilon, x, r)
    return x, r, row.labels[labelled]


def _norm(decoder: Decoder, h: Tensor, weight: Tensor, work: Workspace, name: str) -> tuple[Tensor, Tensor]:
    """x (T, D) in the compute dtype, a buffer that the next norm writes again, and r (T, 1), which is kept."""
    x = work.take("x", tuple(h.shape), decoder.dtype)
    r = work.take(name, (h.shape[0], 1), h.dtype)
    work.operations.norm.forward(h, weight, decoder.epsilon, x, r)
    return x, r


def _add(
    decoder: Decoder, h: Tensor, branch: Tensor, weight: Tensor | None, work: Workspace, name: str, out: Tensor
) -> Tensor | None:
    """Write out = h + branch, the branch through its own norm where there is one; gives that norm's r (T, 1)."""
    if weight is None:
        work.operations.add(h, branch, out)
        return None
    r = work.take(name, (h.shape[0], 1), h.dtype)
    work.operations.norm.forward(branch.to(h.dtype), weight, decoder.epsilon, out, r)
    out += h
    return r


def _branch_gradient(
    dh: Tensor, branch: Tensor | None, weight: Tensor | None, r: Tensor | None, work: Workspace, dtype: torch.dtype
) -> Tensor:
    """The gradient (T, D) of a branch, in the compute dtype, from that of the residual it was added to."""
    dy = work.take("dy", tuple(dh.shape), dtype)
    if branch is None or weight is None or r is None:
        return dy.copy_(dh)
    work.operations.norm.backward(dh, branch.to(dh.dtype), weight, r, dy)
    return dy
