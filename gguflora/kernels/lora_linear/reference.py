"""A linear layer with an optional pair (Hu et al. 2021, arXiv:2106.09685): y = x W^T + bias + scale (x A^T) B^T.

llama.cpp applies adapters in the same form (src/llama-graph.cpp:1520, build_lora_mm). The base's W is frozen: there
is no gradient for it, and autograd keeps x only where a pair needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pair: tuple[Tensor, Tensor] | None,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """One linear layer.

    Args:
        x: (T, in) in the compute dtype.
        weight: (out, in) in the compute dtype.
        bias: (out,) or None.
        pair: lora_a (r, in) and lora_b (out, r) in their own dtype, rounded to the compute dtype here; or None.
        scale: alpha / rank, times the user's scale.
        mask: (T, in) factors of what the pair reads (dropout), or None.

    Returns:
        (T, out).
    """
    if pair is None:
        y = linear(x, weight)
    else:
        lora_a, lora_b = pair
        read = x if mask is None else x * mask
        inner = linear(read, lora_a.to(x.dtype)) * scale  # (T, r)
        # Added to the base's product in its accumulators, which rounds once: see explicit.py.
        y = torch.addmm(linear(inner, lora_b.to(x.dtype)), x, weight.t())
    return y if bias is None else y + bias
