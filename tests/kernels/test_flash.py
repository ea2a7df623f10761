"""Attention by tiles rounds no worse than plain PyTorch, whatever the lengths, windows, heads and threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gguflora.kernels.attention import flash_parts
from gguflora.kernels.attention.reference import attention
from gguflora.kernels.operations import compiled
from gguflora.kernels.threads import libgomp
from tests.kernels.explicit_pair import Backward, blank, differentiable
from tests.kernels.random_inputs import normal, seeded, widened
from tests.numerics import assert_as_exact

HAS_FLASH = libgomp() is not None and compiled().attention.flash is not None
pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(not HAS_FLASH, reason="the processor's products are not by tiles"),
]

SCALE = 0.09  # of heads of 64 and more, and no power of their size
NAMES = ("y", "dq", "dk", "dv")
LENGTHS = [[1], [31], [32], [33], [1, 2, 7, 8, 9, 200], [127, 129, 256], [513], [1100]]


def by_tiles(q: Tensor, k: Tensor, v: Tensor, starts: list[int], scale: float, window: int | None) -> Tensor:
    """flash.py with the reference's arguments; keys and values lie among other things, as in the model's q/k/v."""
    from gguflora.kernels.attention import flash

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Backward]:
        k, v = torch.cat([v, k, v], 1).split(k.shape[1], 1)[1:]
        assert flash.suits(q)
        out = blank(*q.shape, dtype=q.dtype)
        lse = flash.forward(q, k, v, starts, scale, window, out)
        return out, lambda d_out: flash.backward(d_out, out, lse, (q, k, v), starts, scale, window)

    return differentiable(forward, q, k, v)


def inputs(seed: int, tokens: int, heads: int = 3, kv_heads: int = 1, size: int = 64) -> list[Tensor]:
    """Queries, keys and values of sharp attention."""
    generator = seeded(seed)
    shapes = ((tokens, heads, size), (tokens, kv_heads, size), (tokens, kv_heads, size))
    return [normal(generator, *shape, dtype=torch.bfloat16, deviation=1.5) for shape in shapes]


def results(version: object, qkv: list[Tensor], starts: list[int], window: int | None) -> list[Tensor]:
    """Values, and gradients of a random linear objective: everything that NAMES names."""
    assert callable(version)
    objective = normal(seeded(99), *qkv[0].shape, dtype=torch.bfloat16).detach()
    y = version(*qkv, starts, SCALE, window)
    return [y, *torch.autograd.grad((y * objective.to(y.dtype)).sum(), qkv)]


def assert_as_exact_as_pytorch(qkv: list[Tensor], starts: list[int], window: int | None, seed: object) -> None:
    sides = (
        results(by_tiles, qkv, starts, window),
        results(attention, qkv, starts, window),
        results(attention, widened(*qkv), starts, window),
    )
    for name, fast, plain, exact in zip(NAMES, *sides, strict=True):
        if not exact.any():  # queries that see one key each give their scores no slope
            assert not fast.any(), name
            continue
        ratio = assert_as_exact(fast, plain, exact, name, seed=seed)
        print(f"{name}: {ratio:.2f} times plain PyTorch's error")


@pytest.mark.parametrize("window", [None, 1, 40, 300], ids=lambda window: f"window {window}")
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "+".join(map(str, lengths)))
def test_it_errs_at_most_twice_as_much_as_plain_pytorch(lengths: list[int], window: int | None) -> None:
    """Around the sizes of tiles, blocks of keys and items."""
    starts = np.cumsum([0, *lengths]).tolist()
    assert_as_exact_as_pytorch(inputs(0, starts[-1]), starts, window, 0)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 1, 256), (2, 2, 128), (4, 2, 96), (3, 1, 32)])
def test_heads_of_every_size_and_group(heads: int, kv_heads: int, size: int) -> None:
    starts = [0, 75, 300]
    assert_as_exact_as_pytorch(inputs(1, 300, heads, kv_heads, size), starts, None, 1)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 200),
    seed=st.integers(0, 2**16),
)
def test_any_documents(lengths: list[int], window: int | None, seed: int) -> None:
    starts = np.cumsum([0, *lengths]).tolist()
    assert_as_exact_as_pytorch(inputs(seed, starts[-1], 2, 1, 32), starts, window, seed)


def test_a_document_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 35 queries in the backward, which sum what they add to keys, beside one item, in a row with others."""
    starts = [0, 30, 330, 350]
    qkv = inputs(2, 350, 6, 2)
    whole = results(by_tiles, qkv, starts, None)
    monkeypatch.setattr(flash_parts, "BACKWARD_QUERIES", 35)
    monkeypatch.setattr(flash_parts, "FORWARD_QUERIES", 35)
    monkeypatch.setattr(flash_parts, "PARTS", 1000)
    exact = results(attention, widened(*qkv), starts, None)
    for name, parts, one, truth in zip(NAMES, results(by_tiles, qkv, starts, None), whole, exact, strict=True):
        # the sums of one item, rounded once more in another order
        assert_as_exact(parts, one, truth, name, times=1.1)


def test_what_is_cut_without_numba_fits_the_tiles() -> None:
    """flash_parts.py, which the plan of memory reads, imports no compiler and has sizes of its own."""
    from gguflora.kernels.tiles import TILE_COLUMNS, TILE_ROWS

    assert (flash_parts.KEYS_OF_TILE, flash_parts.SIZES_OF_HEADS) == (TILE_ROWS, TILE_COLUMNS)


def test_long_documents_have_few_parts() -> None:
    """What parts' sums take grows as the document does, not as its square."""
    for window in (None, 512):
        rooms = [flash_parts.backward_items([0, length], window, 1, 64)[1] for length in (16384, 32768, 65536)]
        assert rooms[1] <= 2.1 * rooms[0]
        assert rooms[2] <= 2.1 * rooms[1]


def test_its_bits_do_not_depend_on_the_number_of_threads() -> None:
    qkv, starts = inputs(3, 1500, 4, 2), [0, 5, 200, 1500]
    together = results(by_tiles, qkv, starts, None)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for name, one, other in zip(NAMES, results(by_tiles, qkv, starts, None), together, strict=True):
            assert torch.equal(one, other), (name, threads)


def test_a_document_neither_sees_nor_teaches_its_neighbours() -> None:
    """Other values in document 1 leave the others' outputs and gradients as they are, bit for bit."""
    starts = [0, 45, 90, 130]
    first, other = inputs(4, 130), inputs(5, 130)
    second = [torch.cat([new[:45], x[45:]]).detach().requires_grad_() for x, new in zip(first, other, strict=True)]
    for name, one, two in zip(NAMES, *(results(by_tiles, qkv, starts, None) for qkv in (first, second)), strict=True):
        assert torch.equal(one[45:], two[45:]), name
        assert not torch.equal(one[:45], two[:45]), name


def test_the_future_teaches_nothing_to_the_past() -> None:
    """A loss on the first rows alone gives the later keys and values a gradient of exactly zero."""
    q, k, v = inputs(6, 100)
    y = by_tiles(q, k, v, [0, 100], SCALE, None)
    for gradient in torch.autograd.grad(y[:40].square().sum(), [q, k, v]):
        assert gradient[:40].abs().sum() > 0
        assert gradient[40:].abs().sum() == 0


def test_what_a_window_leaves_behind_is_taught_nothing() -> None:
    """A loss on the last row alone reaches the keys and values of its window, all of them and no others."""
    q, k, v = inputs(7, 100)
    y = by_tiles(q, k, v, [0, 100], SCALE, 37)
    for gradient in torch.autograd.grad(y[99].square().sum(), [k, v]):
        assert gradient[63:].flatten(1).any(1).all()
        assert not gradient[:63].any()


@pytest.mark.parametrize("which", range(3), ids=["q", "k", "v"])
def test_a_number_that_is_none_stays_visible(which: int) -> None:
    qkv = [x.detach().clone() for x in inputs(8, 70)]
    qkv[which][50] = float("nan")
    found = results(by_tiles, [x.requires_grad_() for x in qkv], [0, 70], None)
    assert found[0][50:].isnan().any()
    assert any(gradient.isnan().any() for gradient in found[1:])


def test_scores_far_apart_are_no_trouble() -> None:
    """Scores of thousands, which no exponential of theirs would survive: the largest takes all."""
    q, k, v = (x.detach().clone() for x in inputs(9, 64))
    out = by_tiles(q * 200, k * 200, v, [0, 64], 1.0, None)
    expected = attention(q.double() * 200, k.double() * 200, v.double(), [0, 64], 1.0, None)
    assert torch.isfinite(out).all()
    # where two scores are so close that rounding decides, it may be another key's
    sharp = (out.double() - expected).abs().amax((1, 2)) < 0.05
    assert sharp.float().mean() > 0.9


@pytest.mark.parametrize("told", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"])
def test_numba_told_to_forget_the_processor_gets_the_other_attention(told: str) -> None:
    """Instructions that LLVM was told not to know would end the process."""
    value = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "-avx512bf16"}[told]
    question = "from gguflora.kernels.vectors import has_instructions; print(has_instructions())"
    done = subprocess.run(
        [sys.executable, "-c", question], env={**os.environ, told: value}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
