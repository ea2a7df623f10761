"""The network: embedding, layers, norm, head.

    h = embedding(tokens)                                     (T, D), the residual, float32
    for each layer:
        h = h + attn_output(attention(rms_norm(h)))           some models normalise each branch again
        h = h + ffn_down(silu(ffn_gate(n)) * ffn_up(n))       n = rms_norm(h)
    loss = cross_entropy(output(rms_norm(h)), labels)         on labelled rows alone

The residual and the norms are float32 (float64 in proofs); linear layers and attention run in the compute dtype.
Rows are packed: a row holds whole documents one after the other, with no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gguflora.arch import RopeSpec
from gguflora.kernels.dequantise.reference import dequantise
from gguflora.kernels.head_loss.reference import capped, head_loss
from gguflora.kernels.norm.reference import rms_norm
from gguflora.model.attention import Attention
from gguflora.model.dropout import Dropout, mask_of
from gguflora.model.ffn import Ffn
from gguflora.model.linear import Linear
from gguflora.model.lora import Pairs
from gguflora.model.rope import angles
from gguflora.model.row import PackedRow
from gguflora.model.trace import Trace, of_layer, untraced
from gguflora.model.weight import PackedRows, dense


@dataclass(frozen=True)
class Layer:
    """One layer's tensors; norms are (D,)."""

    attn_norm: Tensor
    mixer: Attention
    post_attention_norm: Tensor | None
    ffn_norm: Tensor
    ffn: Ffn
    post_ffw_norm: Tensor | None


@dataclass(frozen=True)
class Decoder:
    """A model ready to run.

    Attributes:
        token_embd: (V, bytes per row), left packed: only the rows that tokens ask for are dequantised.
        embedding_scale: factor of every embedding.
        softcap: logits are softcap * tanh(logits / softcap), or None.
        rope_factors: (h/2,) divisors of rope's frequencies, or None.
        epsilon: of every norm.
        dtype: the compute dtype.
    """

    token_embd: PackedRows
    layers: tuple[Layer, ...]
    output_norm: Tensor
    output: Linear
    embedding_scale: float
    softcap: float | None
    rope_factors: Tensor | None
    epsilon: float
    dtype: torch.dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """The dtype of the residual and the norms."""
        return torch.promote_types(self.dtype, torch.float32)


def hidden_states(
    decoder: Decoder,
    tokens: Tensor,
    positions: Tensor,
    document_starts: list[int],
    dropout: Dropout | None = None,
    trace: Trace = untraced,
) -> Tensor:
    """Run the layers.

    Args:
        decoder: the model.
        tokens: (T,) ids of a packed row.
        positions: (T,) position of each token in its document.
        document_starts: where each document begins, and T at the end.
        dropout: masks of what the pairs read, or None.
        trace: is told every intermediate.

    Returns:
        (T, D) normalised hidden states in the compute dtype, ready for the output layer.
    """
    epsilon = decoder.epsilon
    h = embed(decoder, tokens)
    trace("embd", h)
    turns = rope_tables(decoder, positions)
    for index, layer in enumerate(decoder.layers):
        tell = of_layer(trace, index)
        x = rms_norm(h, layer.attn_norm, epsilon).to(decoder.dtype)
        tell("attn_norm", x)
        cos, sin = turns[layer.mixer.spec.rope]
        mixed = layer.mixer(x, cos, sin, document_starts, epsilon, dropout, tell)
        tell("attn_out", mixed)
        h = h + _normed(mixed, layer.post_attention_norm, decoder, tell, "attn_post_norm")
        tell("ffn_inp", h)
        x = rms_norm(h, layer.ffn_norm, epsilon).to(decoder.dtype)
        tell("ffn_norm", x)
        y = layer.ffn(x, dropout, tell)
        tell("ffn_out", y)
        h = h + _normed(y, layer.post_ffw_norm, decoder, tell, "ffn_post_norm")
        tell("l_out", h)
    hidden = rms_norm(h, decoder.output_norm, epsilon).to(decoder.dtype)
    trace("result_norm", hidden)
    return hidden


def embed(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Token ids (T,) to their scaled embeddings (T, D)."""
    table = decoder.token_embd
    return dequantise(table.data[tokens], table.type).to(decoder.residual_dtype) * decoder.embedding_scale


def rope_tables(decoder: Decoder, positions: Tensor) -> dict[RopeSpec, tuple[Tensor, Tensor]]:
    """Cosines and sines (T, h/2) of each kind of rope that the layers have."""
    specs = {layer.mixer.spec.rope for layer in decoder.layers}
    return {spec: angles(spec, decoder.rope_factors, positions, decoder.residual_dtype) for spec in specs}


def _normed(branch: Tensor, weight: Tensor | None, decoder: Decoder, trace: Trace, name: str) -> Tensor:
    """A branch's result (T, D) as it is added to the residual: through its own norm, where the model has one."""
    if weight is None:
        return branch
    normed = rms_norm(branch.to(decoder.residual_dtype), weight, decoder.epsilon)
    trace(name, normed)
    return normed


def logits(
    decoder: Decoder,
    tokens: Tensor,
    positions: Tensor,
    document_starts: list[int],
    wanted: Tensor | None = None,
    trace: Trace = untraced,
) -> Tensor:
    """Logits (T, V) of every position, or of those whose indices are `wanted`: float32 (float64 in proofs).

    For parity; training never needs them all. `trace` is told every intermediate by llama.cpp's name for it.
    """
    hidden = hidden_states(decoder, tokens, positions, document_starts, trace=trace)
    if wanted is not None:
        hidden = hidden[wanted]
    result = capped(decoder.output(hidden).to(decoder.residual_dtype), decoder.softcap)
    trace("result_output", result)
    return result


def row_loss(decoder: Decoder, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Loss of a packed row: sum of weights * nll over its labelled positions.

    Returns:
        The loss (a scalar with gradient), and the nll (n,) of the labelled positions in their order, without.
    """
    labelled, head = row.labelled, decoder.output
    hidden = hidden_states(decoder, row.tokens, row.positions, row.document_starts, row.dropout)
    mask = mask_of(row.dropout, head.name, hidden)
    before = labelled - 1  # the state before a token predicts it
    return head_loss(
        hidden[before],
        row.labels[labelled],
        row.weights[labelled].to(decoder.residual_dtype),
        dense(head.weight),
        head.halves,
        head.scale,
        decoder.softcap,
        None if mask is None else mask[before],
    )


def with_pairs(decoder: Decoder, pairs: Pairs, scale: float) -> Decoder:
    """The same base with other pairs (none: the bare base); weights are shared, not copied."""

    def fit(linear: Linear) -> Linear:
        return replace(linear, pair=pairs.get(linear.name), scale=scale)

    return replace(
        decoder,
        layers=tuple(_fit_layer(layer, fit) for layer in decoder.layers),
        # A tied output layer bears the embedding's name, for which there is never a pair.
        output=fit(decoder.output),
    )


def _fit_layer(layer: Layer, fit: Callable[[Linear], Linear]) -> Layer:
    mixer, ffn = layer.mixer, layer.ffn
    return replace(
        layer,
        mixer=replace(
            mixer,
            attn_q=fit(mixer.attn_q),
            attn_k=fit(mixer.attn_k),
            attn_v=fit(mixer.attn_v),
            attn_output=fit(mixer.attn_output),
        ),
        ffn=replace(ffn, ffn_gate=fit(ffn.ffn_gate), ffn_up=fit(ffn.ffn_up), ffn_down=fit(ffn.ffn_down)),
    )
