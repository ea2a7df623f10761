"""Causal grouped-query attention inside each document of a packed row: the definition.

A row holds documents one after the other; a position sees itself and what stands before it in its own document.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float, window: int | None) -> Tensor:
    """softmax(q k^T * scale) v, document by document.

    Args:
        q: (T, H, h) queries.
        k: (T, K, h) keys; H is a multiple of K, and query head i reads key head i // (H / K).
        v: (T, K, h) values.
        document_starts: where each document begins, and T at the end.
        scale: factor of the scores.
        window: a position sees itself and the window - 1 positions before it; None is all before it.

    Returns:
        (T, H, h).
    """
    group = q.shape[1] // k.shape[1]
    outputs = []
    for start, end in pairwise(document_starts):
        queries = q[start:end].transpose(0, 1)  # (H, t, h)
        keys = k[start:end].transpose(0, 1).repeat_interleave(group, 0)
        values = v[start:end].transpose(0, 1).repeat_interleave(group, 0)
        hidden = unseen(end - start, window).to(q.device)  # (t, t)
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))  # (t, H, h)
    return torch.cat(outputs)


def unseen(length: int, window: int | None) -> Tensor:
    """Which positions (columns) each position (row) does not see: (t, t) bool."""
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    if window is None:
        return later
    return later | torch.ones_like(later).tril(-window)
