"""Attention: the reference is the textbook's sum, one query at a time; the explicit version rounds no worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.attention import explicit
from gguflora.kernels.attention.reference import attention
from gguflora.kernels.attention.softmax import TORCH
from tests.kernels.explicit_pair import Backward, blank, differentiable
from tests.kernels.random_inputs import normal, seeded, widened
from tests.numerics import Floats, assert_as_exact, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

H, K, DIM = 6, 2, 10  # three queries share a key, and a head is wider than H
SCALE = 0.45  # not DIM ** -0.5, which a kernel would take by itself
NAMES = ("y", "dq", "dk", "dv")

Attention = Callable[[Tensor, Tensor, Tensor, list[int], float, int | None], Tensor]


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, document_starts: list[int], scale: float, window: int | None
) -> Tensor:
    """The explicit version with the reference's arguments; v lies among other things, as in the model's q/k/v."""

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Backward]:
        v = torch.cat([k, v], 1)[:, k.shape[1] :]
        out = blank(*q.shape, dtype=q.dtype)
        explicit.forward(q, k, v, document_starts, scale, window, out, TORCH)
        return out, lambda d_out: explicit.backward(d_out, q, k, v, document_starts, scale, window, TORCH)

    return differentiable(forward, q, k, v)


VERSIONS = pytest.mark.parametrize("version", [attention, explicit_attention])
WINDOWS = pytest.mark.parametrize("window", [None, 1, 5, 100])


def by_hand(q: Floats, k: Floats, v: Floats, starts: Sequence[int], scale: float, window: int | None) -> Floats:
    """One query at a time: weights proportional to exp(q k * scale) over itself and its document's past.

    Source of the window: llama-hparams.h, is_masked_swa, LLAMA_SWA_TYPE_STANDARD: hidden where p1 - p0 >= n_swa.
    """
    out = np.empty_like(q)
    for start, end in pairwise(starts):
        for t in range(start, end):
            first = start if window is None else max(start, t - window + 1)
            for head in range(q.shape[1]):
                shared = head // (q.shape[1] // k.shape[1])
                scores = k[first : t + 1, shared] @ q[t, head] * scale
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v[first : t + 1, shared]
    return out


def inputs(
    seed: int, tokens: int, dtype: torch.dtype = torch.float64, heads: int = H, kv_heads: int = K, size: int = DIM
) -> list[Tensor]:
    """Queries, keys and values; queries and keys wide enough for sharp attention."""
    generator = seeded(seed)
    return [
        normal(generator, tokens, heads, size, dtype=dtype, deviation=1.3),
        normal(generator, tokens, kv_heads, size, dtype=dtype, deviation=1.3),
        normal(generator, tokens, kv_heads, size, dtype=dtype),
    ]


def results(version: Attention, qkv: list[Tensor], starts: list[int], window: int | None) -> list[Tensor]:
    """Values, and gradients of a random linear objective: everything that NAMES names."""
    objective = normal(seeded(99), *qkv[0].shape, dtype=torch.float32).detach()
    y = version(qkv[0], qkv[1], qkv[2], starts, SCALE, window)
    return [y, *torch.autograd.grad((y * objective.to(qkv[0].dtype)).sum(), qkv)]


@WINDOWS
@VERSIONS
def test_it_is_the_textbook_sum(version: Attention, window: int | None) -> None:
    q, k, v = inputs(0, 44)
    starts = [0, 1, 3, 40, 41, 44]
    expected = by_hand(q.detach().numpy(), k.detach().numpy(), v.detach().numpy(), starts, SCALE, window)
    # float64 rounds at 1e-16; a few dozen terms
    assert_close(version(q, k, v, starts, SCALE, window), expected, 1e-13)


@pytest.mark.parametrize("window", [None, 1, 2, 3])
@VERSIONS
def test_its_gradients_are_right(version: Attention, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a document of six is in three blocks, and a window is smaller than a block, equal and larger."""
    monkeypatch.setattr(explicit, "BLOCK", 2)
    qkv = inputs(1, 7, heads=4, kv_heads=2, size=3)
    assert gradcheck(lambda q, k, v: version(q, k, v, [0, 1, 7], SCALE, window), qkv)


@pytest.mark.parametrize("window", [None, 37, 700], ids=["all", "window 37", "window 700"])
@pytest.mark.parametrize(
    "lengths", [[1], [511], [512], [513], [1, 511, 2, 513], [1100]], ids=lambda lengths: "+".join(map(str, lengths))
)
def test_blocks_are_the_whole(lengths: list[int], window: int | None) -> None:
    """Documents around the size of a block and longer; windows smaller and larger than one."""
    assert explicit.BLOCK == 512
    starts = np.cumsum([0, *lengths]).tolist()
    qkv = inputs(2, starts[-1], heads=4, kv_heads=2, size=5)
    sides = (results(version, qkv, starts, window) for version in (explicit_attention, attention))
    for name, ours, theirs in zip(NAMES, *sides, strict=True):
        if lengths == [1] and name in ("dq", "dk"):  # a token that sees itself alone gives its scores no slope
            assert not ours.any()
        else:
            assert_close(ours, theirs, 1e-12, name)  # float64 rounds at 1e-16; sums of a thousand terms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("starts", [[0, 1, 3, 40, 41, 320], [0, 600]], ids=["short", "long"])
def test_the_explicit_version_errs_at_most_twice_as_much_as_plain_pytorch(
    starts: list[int], window: int | None, dtype: torch.dtype
) -> None:
    qkv = inputs(3, starts[-1], dtype)
    sides = (
        results(explicit_attention, qkv, starts, window),
        results(attention, qkv, starts, window),
        results(attention, widened(*qkv), starts, window),
    )
    for name, fast, plain, exact in zip(NAMES, *sides, strict=True):
        ratio = assert_as_exact(fast, plain, exact, name, seed=3)
        print(f"{name} {dtype}: {ratio:.2f} times plain PyTorch's error")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@VERSIONS
def test_a_document_neither_sees_nor_teaches_its_neighbours(version: Attention, dtype: torch.dtype) -> None:
    """Other values in document 1 leave the others' outputs and gradients as they are, bit for bit."""
    starts = [0, 9, 20, 30]
    first = inputs(4, 30, dtype)
    second = [torch.cat([other[:9], x[9:]]).detach() for x, other in zip(first, inputs(5, 30, dtype), strict=True)]
    sides = []
    for leaves in (first, [x.requires_grad_() for x in second]):
        y = version(*leaves, starts, SCALE, None)
        sides.append([x[9:] for x in (y, *torch.autograd.grad(y.float().square().sum(), leaves))])
    for one, other in zip(*sides, strict=True):
        assert torch.equal(one, other)


@VERSIONS
def test_the_future_teaches_nothing_to_the_past(version: Attention) -> None:
    """A loss on the first rows alone gives the later keys and values a gradient of exactly zero."""
    q, k, v = inputs(6, 12)
    y = version(q, k, v, [0, 12], SCALE, None)
    for gradient in torch.autograd.grad(y[:5].square().sum(), [q, k, v]):
        assert gradient[:5].abs().sum() > 0
        assert gradient[5:].abs().sum() == 0


@VERSIONS
def test_what_a_window_leaves_behind_is_taught_nothing(version: Attention) -> None:
    """A loss on the last row alone reaches the keys and values of its window, all of them and no others."""
    q, k, v = inputs(7, 12)
    y = version(q, k, v, [0, 12], SCALE, 4)
    for gradient in torch.autograd.grad(y[11].square().sum(), [k, v]):
        assert gradient[8:].flatten(1).any(1).all()
        assert not gradient[:8].any()
