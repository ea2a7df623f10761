"""Output layer and weighted cross-entropy of labelled rows: the definition.

nll = logsumexp(logits) - logits[label], in float32 at least (the log-sum-exp form needs no floor under log).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gguflora.kernels.lora_linear.reference import lora_linear


def head_loss(
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    weight: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    scale: float,
    softcap: float | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of n labelled rows.

    Args:
        hidden: (n, D) normalised hidden states that predict the labels.
        labels: (n,) token ids.
        weights: (n,) factor of each row's nll in the loss.
        weight: (V, D) output layer.
        pair: the output layer's pair, or None.
        scale: the pair's scale.
        softcap: logits are softcap * tanh(logits / softcap), or None.
        mask: (n, D) dropout's factors of what the pair reads, or None.

    Returns:
        The loss, sum of weights * nll (a scalar with gradient), and nll (n,) without.
    """
    logits = lora_linear(hidden, weight, None, pair, scale, mask)
    logits = capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), softcap)  # (n, V)
    nll = logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]
    return (nll * weights).sum(), nll.detach()


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits kept within +-softcap by tanh, as they are if it is None."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()
