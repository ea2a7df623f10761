"""Attention: the reference is the textbook's sum, one query at a time; the fused version rounds no worse."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.attention import flash, reference
from tests.kernels.random_inputs import normal, seeded, widened
from tests.numerics import Floats, assert_as_exact, assert_close

H, K, DIM = 6, 2, 10  # three queries share a key, and a head is wider than H
DOCUMENTS = [0, 1, 3, 40, 41, 320]  # of one, of two, and of more tokens than a kernel's block
SCALE = 0.45  # not DIM ** -0.5, which a kernel would take by itself


def by_hand(q: Floats, k: Floats, v: Floats, starts: Sequence[int], scale: float) -> Floats:
    """One query at a time: weights proportional to exp(q k * scale) over its own document's past and itself."""
    out = np.empty_like(q)
    for start, end in pairwise(starts):
        for t in range(start, end):
            for head in range(q.shape[1]):
                shared = head // (q.shape[1] // k.shape[1])
                scores = k[start : t + 1, shared] @ q[t, head] * scale
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v[start : t + 1, shared]
    return out


def inputs(generator: torch.Generator, tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values; queries and keys wide enough for sharp attention."""
    return [
        normal(generator, tokens, H, DIM, dtype=dtype, deviation=1.3),
        normal(generator, tokens, K, DIM, dtype=dtype, deviation=1.3),
        normal(generator, tokens, K, DIM, dtype=dtype),
    ]


@pytest.mark.parametrize("version", [reference, flash], ids=["reference", "flash"])
def test_it_is_the_textbook_sum(version: ModuleType) -> None:
    q, k, v = inputs(seeded(0), 44)
    starts = [0, 1, 3, 40, 41, 44]
    expected = by_hand(q.detach().numpy(), k.detach().numpy(), v.detach().numpy(), starts, SCALE)
    # float64 rounds at 1e-16; a few dozen terms
    assert_close(version.attention(q, k, v, starts, SCALE), expected, 1e-13)


@pytest.mark.parametrize("version", [reference, flash], ids=["reference", "flash"])
def test_its_gradients_are_right(version: ModuleType) -> None:
    generator = seeded(1)
    q, k, v = normal(generator, 5, 4, 3), normal(generator, 5, 2, 3), normal(generator, 5, 2, 3)
    assert gradcheck(lambda q, k, v: version.attention(q, k, v, [0, 1, 5], SCALE), [q, k, v])


# The fused backward makes the weights again, as exp(score - lse), which rounds the score a second time: in float32 its
# gradients err 1.5 to 2.4 times as much as plain PyTorch's here. FlashAttention's own tests allow gradients 3 times.
@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 3.0), (torch.bfloat16, 2.0)])
def test_the_fused_version_errs_little_more_than_plain_pytorch(dtype: torch.dtype, times: float) -> None:
    generator = seeded(2)
    qkv = inputs(generator, DOCUMENTS[-1], dtype)
    objective = normal(generator, DOCUMENTS[-1], H, DIM, dtype=dtype).detach()
    results = []
    for version, leaves in ((flash, qkv), (reference, qkv), (reference, widened(*qkv))):
        y = version.attention(*leaves, DOCUMENTS, SCALE)
        results.append([y, *torch.autograd.grad((y * objective.to(y.dtype)).sum(), leaves)])
    for name, fast, plain, exact in zip(("y", "dq", "dk", "dv"), *results, strict=True):
        ratio = assert_as_exact(fast, plain, exact, name, times=2.0 if name == "y" else times, seed=2)
        print(f"{name} {dtype}: {ratio:.2f} times plain PyTorch's error")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", [reference, flash], ids=["reference", "flash"])
def test_a_document_neither_sees_nor_teaches_its_neighbours(version: ModuleType, dtype: torch.dtype) -> None:
    """Other values in document 1 leave the others' outputs and gradients as they are, bit for bit."""
    generator = seeded(3)
    starts = [0, 9, 20, 30]
    first = inputs(generator, 30, dtype)
    second = [torch.cat([normal(generator, 9, *x.shape[1:], dtype=dtype), x[9:]]).detach() for x in first]
    results = []
    for leaves in (first, [x.requires_grad_() for x in second]):
        y = version.attention(*leaves, starts, SCALE)
        results.append([x[9:] for x in (y, *torch.autograd.grad(y.float().square().sum(), leaves))])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("version", [reference, flash], ids=["reference", "flash"])
def test_the_future_teaches_nothing_to_the_past(version: ModuleType) -> None:
    """A loss on the first rows alone gives the later keys and values a gradient of exactly zero."""
    q, k, v = inputs(seeded(4), 12)
    y = version.attention(q, k, v, [0, 12], SCALE)
    for gradient in torch.autograd.grad(y[:5].square().sum(), [q, k, v]):
        assert gradient[:5].abs().sum() > 0
        assert gradient[5:].abs().sum() == 0
