"""The softmax between attention's products and its gradient, in place, with what a position does not see left out.

Rows are queries, folded as explicit.py folds them: for each key head the positions of a block, for each position the
query heads of the group. The positions are the last n of the m that there are keys of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def forward(scores: Tensor, positions: int, scale: float, window: int | None) -> None:
    """Turn scores (K, n G, m) of the last n = `positions` of m positions into probabilities, 0 where nothing is seen.

    Computed in float32 at least, whatever the scores' dtype.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    hidden = _hidden(positions, scores.shape[-1], window)
    wide.view(scores.shape[0], positions, -1, scores.shape[-1]).masked_fill_(hidden[:, None], -torch.inf)
    scores.copy_(wide.softmax(-1))


def backward(p: Tensor, dp: Tensor, scale: float) -> None:
    """Turn dp (K, n G, m), the gradient of probabilities p, into that of the products before `scale`."""
    wide = torch.promote_types(p.dtype, torch.float32)
    rowsum = (dp * p).sum(-1, keepdim=True, dtype=wide)
    dp.copy_(((dp - rowsum) * p).mul_(scale))  # 0 where nothing is seen, as p is


@dataclass(frozen=True)
class Softmax:
    """One version of both: `forward(scores, positions, scale, window)` and `backward(p, dp, scale)`."""

    forward: Callable[[Tensor, int, float, int | None], None]
    backward: Callable[[Tensor, Tensor, float], None]


def _hidden(n: int, m: int, window: int | None) -> Tensor:
    """What the last n of m positions do not see: (n, m) bool."""
    ahead = torch.ones(n, m, dtype=torch.bool).triu(m - n + 1)
    return ahead if window is None else ahead | torch.ones_like(ahead).tril(m - n - window)


TORCH = Softmax(forward, backward)
