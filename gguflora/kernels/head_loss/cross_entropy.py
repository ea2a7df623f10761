"""Cross-entropy of a chunk of logits, and in their place its gradient.

nll = lse - logits[label]        d logits = weight (softmax - onehot(label))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CrossEntropy = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""The function below, or the compiled one."""


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The nll (n,) of labels (n,); with weights (n,) logits (n, V) become the gradient of sum(weights * nll).

    Computed in float32 at least, whatever the logits' dtype.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = wide.logsumexp(-1)
    nll = lse - wide.gather(-1, labels[:, None])[:, 0]
    if weights is not None:
        dy = wide.sub_(lse[:, None]).exp_()  # softmax, in the logits' own memory
        dy[torch.arange(len(dy)), labels] -= 1
        logits.copy_(dy.mul_(weights[:, None]))
    return nll
