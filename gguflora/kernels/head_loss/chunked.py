"""The same loss in chunks of rows, gradient in the same pass: logits of more than one chunk never exist at once.

With y = x W^T + scale (x A^T) B^T, p = softmax(y) and dy = weights * (p - onehot(label)), for each chunk:

    dx = dy W + scale (dy B) A        dA = scale (dy B)^T x        dB = scale dy^T (x A^T)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gguflora.kernels.lora_linear.reference import lora_linear

CHUNK = 256  # rows; 50 MB of float32 logits at a vocabulary of 49k, 268 MB at 262k


def head_loss(
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    weight: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As reference.head_loss: hidden (n, D), labels (n,), weights (n,), weight (V, D); gives loss and nll (n,)."""
    lora_a, lora_b = pair or (None, None)
    loss, nll = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, labels, weights, weight, lora_a, lora_b, scale
    )
    return loss, nll


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        weights: Tensor,
        weight: Tensor,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        pair = None if lora_a is None or lora_b is None else (lora_a, lora_b)
        needs = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x) if needs and x is not None else None for x in (hidden, lora_a, lora_b)]
        nll = torch.empty(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            x, chunk_labels = hidden[rows], labels[rows]
            logits = lora_linear(x, weight, None, pair, scale).to(nll.dtype)
            lse = logits.logsumexp(-1)
            nll[rows] = lse - logits.gather(-1, chunk_labels[:, None])[:, 0]
            if needs:
                dy = logits.sub_(lse[:, None]).exp_()  # softmax, in the logits' own memory
                dy[torch.arange(len(x)), chunk_labels] -= 1
                dy *= weights[rows, None]
                _accumulate(gradients, rows, x, dy.to(x.dtype), weight, pair, scale)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_loss = outputs[0]
        dx, da, db = (None if g is None else g * d_loss.to(g.dtype) for g in ctx.saved_tensors)
        return dx, None, None, None, da, db, None


def _accumulate(
    gradients: list[Tensor | None],
    rows: slice,
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    scale: float,
) -> None:
    dx, da, db = gradients
    assert dx is not None
    dx[rows] = dy @ weight
    if pair is None or da is None or db is None:
        return
    lora_a, lora_b = (half.to(x.dtype) for half in pair)
    d_inner = (dy @ lora_b) * scale  # (rows, r)
    dx[rows] += d_inner @ lora_a
    da += (d_inner.T @ x).to(da.dtype)
    db += (dy.T @ ((x @ lora_a.T) * scale)).to(db.dtype)
