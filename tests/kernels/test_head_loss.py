"""Head and loss: the reference is PyTorch's cross_entropy of the merged layer; the explicit version rounds no worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.head_loss import explicit, reference
from gguflora.kernels.lora_linear.explicit import Block, StackedPairs
from gguflora.kernels.operations import TORCH
from tests.kernels.explicit_pair import Backward, differentiable
from tests.kernels.random_inputs import normal, seeded, strided, widened
from tests.numerics import assert_as_exact, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

D, V, RANK, SCALE = 48, 300, 5, 2.5
SHARE = 0.3  # of the loss: in a step each micro-batch's loss is divided by the step's weight
NAMES = ("loss", "nll", "dx", "dA", "dB")


@dataclass(frozen=True)
class Inputs:
    """What the operation takes; `leaves` are what a gradient is asked for: hidden, and lora_a and lora_b if any."""

    leaves: list[Tensor]
    labels: Tensor
    weights: Tensor
    weight: Tensor
    softcap: float | None = None
    mask: Tensor | None = None

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        return (self.leaves[1], self.leaves[2]) if len(self.leaves) == 3 else None

    def in_float64(self) -> Inputs:
        """The same values as float64: what a dtype's own rounding is measured against."""
        return replace(
            self,
            leaves=widened(*self.leaves),
            weights=self.weights.double(),
            weight=self.weight.double(),
            mask=None if self.mask is None else self.mask.double(),
        )


def referred(given: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and nll of the reference."""
    return reference.head_loss(
        given.leaves[0], given.labels, given.weights, given.weight, given.pair, SCALE, given.softcap, given.mask
    )


def one_pair(lora_a: Tensor, lora_b: Tensor) -> StackedPairs:
    """The head's pair: all rows, all ranks."""
    return StackedPairs(lora_a, (Block(lora_b, slice(0, len(lora_b)), slice(0, len(lora_a))),), SCALE)


def explicitly(given: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and nll of the explicit version."""
    kept: list[Tensor] = []

    def forward(x: Tensor, *halves: Tensor) -> tuple[Tensor, Backward]:
        pairs = one_pair(halves[0].to(x.dtype), halves[1].to(x.dtype)) if halves else None
        nll, found = explicit.forward_backward(
            x, given.labels, given.weights, given.weight, pairs, given.softcap, TORCH, given.mask
        )
        kept.append(nll)
        of_halves = zip((found.da, found.db), halves, strict=False)
        gradients = [found.dx, *(g.to(half.dtype) for g, half in of_halves if g is not None)]
        return (nll * given.weights).sum(), lambda d_loss: tuple(g * d_loss.to(g.dtype) for g in gradients)

    return differentiable(forward, *given.leaves), kept[0]


Version = Callable[[Inputs], tuple[Tensor, Tensor]]
VERSIONS = pytest.mark.parametrize("version", [referred, explicitly])
WITH_PAIR = pytest.mark.parametrize("with_pair", [False, True], ids=["base", "pair"])
SOFTCAP = pytest.mark.parametrize("softcap", [None, 3.0], ids=["", "soft cap"])


def inputs(n: int, seed: int, with_pair: bool, dtype: torch.dtype = torch.float64, **options: Any) -> Inputs:
    """Logits deviate by 2; pair and weights are float32 at least, as in training."""
    generator = seeded(seed)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [normal(generator, n, D, dtype=dtype)]
    if with_pair:
        leaves.append(normal(generator, RANK, D, dtype=wide))
        leaves.append(normal(generator, V, RANK, dtype=wide, deviation=0.1))
    return Inputs(
        leaves,
        labels=torch.randint(0, V, (n,), generator=generator),
        weights=torch.rand(n, generator=generator, dtype=torch.float64).to(wide) + 0.25,
        weight=normal(generator, V, D, dtype=dtype, deviation=2 * D**-0.5).detach(),
        **options,
    )


def dropping(n: int, dtype: torch.dtype) -> Tensor:
    """A mask (n, D) that drops a quarter."""
    return (torch.rand(n, D, generator=seeded(50)) > 0.25).to(dtype) / 0.75


def results(version: Version, given: Inputs) -> list[Tensor]:
    """Everything that NAMES names."""
    loss, nll = version(given)
    return [loss, nll, *torch.autograd.grad(SHARE * loss, given.leaves)]


@VERSIONS
@WITH_PAIR
@SOFTCAP
def test_it_is_pytorchs_cross_entropy_of_the_merged_layer(
    version: Version, with_pair: bool, softcap: float | None
) -> None:
    given = inputs(300, 0, with_pair, softcap=softcap)
    merged = given.weight + SCALE * given.pair[1] @ given.pair[0] if given.pair else given.weight
    logits = given.leaves[0] @ merged.T
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    nll = torch.nn.functional.cross_entropy(logits, given.labels, reduction="none")
    loss = (nll * given.weights).sum()
    expected = [loss, nll, *torch.autograd.grad(SHARE * loss, given.leaves)]
    for name, ours, theirs in zip(NAMES, results(version, given), expected, strict=False):
        assert_close(ours, theirs, 1e-12, name)  # float64 rounds at 1e-16; sums of a few hundred terms


@VERSIONS
def test_a_mask_is_on_what_the_pair_reads_alone(version: Version) -> None:
    given = inputs(300, 4, True, mask=dropping(300, torch.float64))
    x, lora_a, lora_b = given.leaves
    assert given.mask is not None
    logits = x @ given.weight.T + SCALE * (x * given.mask) @ lora_a.T @ lora_b.T
    loss = (torch.nn.functional.cross_entropy(logits, given.labels, reduction="none") * given.weights).sum()
    expected = [loss, *torch.autograd.grad(SHARE * loss, given.leaves)]
    ours, _, *gradients = results(version, given)
    for name, found, theirs in zip(("loss", "dx", "dA", "dB"), [ours, *gradients], expected, strict=True):
        assert_close(found, theirs, 1e-12, name)


@VERSIONS
@WITH_PAIR
@SOFTCAP
def test_its_gradients_are_right(
    version: Version, with_pair: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explicit, "chunk_rows", lambda _: 3)  # seven rows make three chunks, the last one short
    generator = seeded(1)
    labels, weights = torch.tensor([0, 4, 2, 2, 1, 3, 4]), torch.rand(7, generator=generator, dtype=torch.float64)
    weight = normal(generator, 5, 6).detach()
    leaves = [strided(generator, 7, 6)]
    leaves += [strided(generator, 3, 6), strided(generator, 5, 3)] if with_pair else []
    mask = torch.rand(7, 6, generator=generator, dtype=torch.float64).round() * 2 if with_pair else None

    def loss(*moved: Tensor) -> Tensor:
        return 1.7 * version(Inputs(list(moved), labels, weights, weight, softcap, mask))[0]

    assert gradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@WITH_PAIR
@SOFTCAP
@pytest.mark.parametrize(("n", "chunk"), [(1, 256), (255, 256), (256, 256), (257, 256), (1500, 256), (1500, 7)])
def test_the_explicit_version_errs_at_most_twice_as_much_as_plain_pytorch(
    n: int, chunk: int, with_pair: bool, softcap: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around and across the borders of its chunks, and with so many that adding them up in bfloat16 would show.

    The loss is left out: it is the test's own sum, and the error of a single number is luck.
    """
    monkeypatch.setattr(explicit, "chunk_rows", lambda _: chunk)
    sides: list[list[list[Tensor]]] = [[], [], []]
    for seed in range(20 if n == 1 else 1):  # so that one row's luck is none
        given = inputs(n, n + seed, with_pair, dtype, softcap=softcap, mask=dropping(n, dtype) if with_pair else None)
        exact = given.in_float64()
        for side, (version, its) in zip(
            sides, ((explicitly, given), (referred, given), (referred, exact)), strict=True
        ):
            side.append(results(version, its)[1:])
    together = [[torch.stack(repeats) for repeats in zip(*side, strict=True)] for side in sides]
    for name, fast, plain, truth in zip(NAMES[1:], *together, strict=False):
        ratio = assert_as_exact(fast, plain, truth, name, seed=n)
        print(f"{name} {dtype}: {ratio:.2f} times plain PyTorch's error")


@VERSIONS
def test_huge_logits_give_finite_losses_and_gradients(version: Version) -> None:
    """Logits of +-1e4, where exp overflows: the nll of the largest is 0, that of the smallest their difference."""
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    hidden = torch.full((2, 1), 1e4, requires_grad=True)
    loss, nll = version(Inputs([hidden], torch.tensor([0, 1]), torch.ones(2), weight))
    assert nll.tolist() == [0.0, 2e4]
    [gradient] = torch.autograd.grad(loss, [hidden])
    assert gradient.tolist() == [[0.0], [2.0]]


@pytest.mark.parametrize(("vocabulary", "rows"), [(2_000, 16_384), (49_152, 512), (131_072, 256), (262_144, 256)])
def test_a_chunk_of_logits_takes_64_mb_or_has_256_rows(vocabulary: int, rows: int) -> None:
    assert explicit.chunk_rows(vocabulary) == rows


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_without_gradients_it_gives_the_same_losses(softcap: float | None) -> None:
    given = inputs(257, 2, True, torch.float32, softcap=softcap)
    _, nll = explicitly(given)
    x, lora_a, lora_b = (leaf.detach() for leaf in given.leaves)
    again = explicit.nll(x, given.labels, given.weight, one_pair(lora_a, lora_b), softcap, TORCH)
    assert torch.equal(nll, again)


def test_the_references_nll_has_no_gradient() -> None:
    """Training sums it for the report: a graph behind it would stay in memory."""
    _, nll = referred(inputs(3, 3, True))
    assert not nll.requires_grad
