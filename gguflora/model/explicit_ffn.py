"""The feed-forward half of a layer as a pair of forward and backward; the reference is Ffn.__call__.

    gate, up = x W_gate^T, x W_up^T        y = (f(gate) up) W_down^T

Kept for the backward: gate and up in one buffer, and the pairs' inner products. f(gate) up is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.kernels.activation import explicit as activation
from gguflora.kernels.lora_linear import explicit as linear
from gguflora.model.ffn import Ffn
from gguflora.model.groups import add_gradients, inner_buffer, stack_bias, stack_pairs
from gguflora.model.workspace import Workspace


@dataclass(frozen=True)
class SavedFfn:
    """gate_up (T, 2F), c_gate_up (T, R) and c_down (T, r)."""

    gate_up: Tensor
    c_gate_up: Tensor | None
    c_down: Tensor | None


def forward(ffn: Ffn, x: Tensor, work: Workspace, prefix: str, y: Tensor) -> SavedFfn:
    """Write y (T, D) for the normalised x (T, D); what is kept goes to buffers named by `prefix`."""
    tokens, width = x.shape[0], ffn.ffn_gate.weight.shape[0]
    group = (ffn.ffn_gate, ffn.ffn_up)
    gate_up = work.take(prefix + "gate_up", (tokens, 2 * width), x.dtype)
    pairs = stack_pairs(group, x.dtype)
    c_gate_up = inner_buffer(pairs, work, prefix + "c_gate_up", tokens)
    linear.forward(x, work.dense(ffn.gate_up_weight), stack_bias(group, x.dtype), pairs, gate_up, c_gate_up)
    act = work.take("act", (tokens, width), x.dtype)
    gate, up = gate_up.chunk(2, dim=1)
    activation.forward(gate, up, ffn.activation, act)
    pairs = stack_pairs((ffn.ffn_down,), x.dtype)
    c_down = inner_buffer(pairs, work, prefix + "c_down", tokens)
    linear.forward(act, work.dense(ffn.ffn_down.weight), ffn.ffn_down.bias, pairs, y, c_down)
    return SavedFfn(gate_up, c_gate_up, c_down)


def backward(ffn: Ffn, dy: Tensor, x: Tensor, saved: SavedFfn, work: Workspace, dx: Tensor) -> None:
    """Write dx (T, D) for dy (T, D), and add to the pairs' gradients."""
    gate, up = saved.gate_up.chunk(2, dim=1)
    act = work.take("act", tuple(gate.shape), x.dtype)
    d_act = work.take("d_act", tuple(gate.shape), x.dtype)
    activation.forward(gate, up, ffn.activation, act)
    down = (ffn.ffn_down,)
    pairs = stack_pairs(down, x.dtype)
    add_gradients(down, linear.backward(dy, act, saved.c_down, work.dense(ffn.ffn_down.weight), pairs, d_act))
    d_gate_up = work.take("d_gate_up", tuple(saved.gate_up.shape), x.dtype)
    d_gate, d_up = d_gate_up.chunk(2, dim=1)
    activation.backward(d_act, gate, up, ffn.activation, d_gate, d_up)
    group = (ffn.ffn_gate, ffn.ffn_up)
    pairs = stack_pairs(group, x.dtype)
    add_gradients(group, linear.backward(d_gate_up, x, saved.c_gate_up, work.dense(ffn.gate_up_weight), pairs, dx))
