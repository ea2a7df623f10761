"""Causal grouped-query attention inside each document of a packed row: the definition.

A row holds documents one after the other; a position sees itself and what stands before it in its own document.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float) -> Tensor:
    """softmax(q k^T * scale) v, document by document.

    Args:
        q: (T, H, h) queries.
        k: (T, K, h) keys; H is a multiple of K, and query head i reads key head i // (H / K).
        v: (T, K, h) values.
        document_starts: where each document begins, and T at the end.
        scale: factor of the scores.

    Returns:
        (T, H, h).
    """
    group = q.shape[1] // k.shape[1]
    outputs = []
    for start, end in pairwise(document_starts):
        queries = q[start:end].transpose(0, 1)  # (H, t, h)
        keys = k[start:end].transpose(0, 1).repeat_interleave(group, 0)
        values = v[start:end].transpose(0, 1).repeat_interleave(group, 0)
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(_future(end - start, q.device), -torch.inf)
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))  # (t, H, h)
    return torch.cat(outputs)


def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
