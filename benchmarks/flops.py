"""Floating-point operations that a step of LoRA training needs, a multiplication and its addition counted as two.

    linear layers     4 N a token: forward 2 N, the input's gradient 2 N; the frozen weights' own gradient is none
    pairs             6 r (in + out) a token and layer: forward, input's gradient, the pair's gradient
    head              4 V D a trained token: forward and gradient, on rows that have a label alone
    attention         12 H h a pair of a position and one that it sees: forward Q K^T and P V, backward twice as much

What some way of doing it computes besides (padding, logits that nobody asked for, layers run twice) counts for
nothing: it is the work that was wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from math import prod

from gguflora.arch import ModelSpec
from gguflora.data import Encoded


def step_flops(spec: ModelSpec, rank: int, examples: Iterable[Encoded]) -> float:
    """Of one step on `examples`, with a pair of `rank` on each linear layer of the blocks.

    The model's attention has no window.
    """
    linears = [linear for layer in spec.layers for linear in layer.linears()]
    a_token = sum(4 * prod(linear.shape) + 6 * rank * sum(linear.shape) for linear in linears)
    a_trained_token = 4 * prod(spec.output.shape)
    a_seen_position = sum(12 * layer.mixer.heads * layer.mixer.head_dim for layer in spec.layers)
    total = 0.0
    for example in examples:
        length = len(example.tokens)
        total += a_token * length
        total += a_trained_token * int((example.labels >= 0).sum())
        total += a_seen_position * length * (length + 1) / 2
    return total


def layer_shapes(spec: ModelSpec) -> list[tuple[int, int]]:
    """Shapes (out, in) of a layer's products, those that read the same input as one: the best that can be done."""
    layer = spec.layers[0]
    mixer, ffn = layer.mixer, layer.ffn
    groups = [(mixer.attn_q, mixer.attn_k, mixer.attn_v), (mixer.attn_output,), (ffn.ffn_gate, ffn.ffn_up)]
    shapes = [(sum(linear.shape[0] for linear in group), group[0].shape[1]) for group in groups]
    return list(chain(shapes, [ffn.ffn_down.shape]))
