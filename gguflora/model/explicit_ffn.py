"""The feed-forward half of a layer as a pair of forward and backward; the reference is Ffn.__call__.

    gate, up = x W_gate^T, x W_up^T        y = (f(gate) up) W_down^T

Kept for the backward: gate and up in one buffer, and what the pairs keep. f(gate) up is computed again in the pass that
takes the gradients of gate and up; until then nothing needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gguflora.model import groups
from gguflora.model.dropout import Dropout
from gguflora.model.ffn import Ffn
from gguflora.model.groups import Group, SavedPairs, single
from gguflora.model.workspace import Workspace


@dataclass(frozen=True)
class SavedFfn:
    """gate_up (T, 2F), and what the pairs keep."""

    gate_up: Tensor
    gate_up_pairs: SavedPairs | None
    down_pairs: SavedPairs | None


def forward(ffn: Ffn, x: Tensor, dropout: Dropout | None, work: Workspace, prefix: str, y: Tensor) -> SavedFfn:
    """Write y (T, D) for the normalised x (T, D); what is kept goes to buffers named by `prefix`."""
    group = _gate_up(ffn)
    gate_up = work.take(prefix + "gate_up", (x.shape[0], group.weight.shape[0]), x.dtype)
    gate_up_pairs = groups.forward(group, x, dropout, work, prefix + "c_gate_up", gate_up)
    gate, up = gate_up.chunk(2, dim=1)
    act = work.take("act", tuple(gate.shape), x.dtype)
    work.operations.activation.forward(gate, up, ffn.activation, act)
    down_pairs = groups.forward(single(ffn.ffn_down), act, dropout, work, prefix + "c_down", y)
    return SavedFfn(gate_up, gate_up_pairs, down_pairs)


def backward(
    ffn: Ffn, dy: Tensor, x: Tensor, dropout: Dropout | None, saved: SavedFfn, work: Workspace, dx: Tensor
) -> None:
    """Write dx (T, D) for dy (T, D), and add to the pairs' gradients."""
    gate_up, down = _gate_up(ffn), single(ffn.ffn_down)
    gate, up = saved.gate_up.chunk(2, dim=1)
    d_act = work.take("d_act", tuple(gate.shape), x.dtype)
    delta = groups.backward(down, dy, saved.down_pairs, dropout, work, d_act)
    act = work.take("act", tuple(gate.shape), x.dtype)
    d_gate_up = work.take("d_gate_up", tuple(saved.gate_up.shape), x.dtype)
    d_gate, d_up = d_gate_up.chunk(2, dim=1)
    work.operations.activation.backward(d_act, gate, up, ffn.activation, d_gate, d_up, act)
    groups.add_pair_gradients(down, act, delta, work)
    delta = groups.backward(gate_up, d_gate_up, saved.gate_up_pairs, dropout, work, dx)
    groups.add_pair_gradients(gate_up, x, delta, work)


def _gate_up(ffn: Ffn) -> Group:
    return Group((ffn.ffn_gate, ffn.ffn_up), ffn.gate_up_weight)
