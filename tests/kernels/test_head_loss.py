"""Head and loss: the reference is PyTorch's cross_entropy of the merged layer; the chunked version rounds no worse."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from gguflora.kernels.head_loss import chunked, reference
from tests.kernels.random_inputs import normal, seeded, strided, widened
from tests.numerics import assert_as_exact, assert_close

D, V, RANK, SCALE = 48, 300, 5, 2.5
SHARE = 0.3  # of the loss: in a step each micro-batch's loss is divided by the step's weight
NAMES = ("loss", "nll", "dx", "dA", "dB")
VERSIONS = pytest.mark.parametrize("version", [reference, chunked], ids=["reference", "chunked"])
WITH_PAIR = pytest.mark.parametrize("with_pair", [False, True], ids=["base", "pair"])


@dataclass(frozen=True)
class Inputs:
    """What the operation takes; `leaves` are what a gradient is asked for: hidden, and lora_a and lora_b if any."""

    leaves: list[Tensor]
    labels: Tensor
    weights: Tensor
    weight: Tensor

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        return (self.leaves[1], self.leaves[2]) if len(self.leaves) == 3 else None

    def in_float64(self) -> Inputs:
        """The same values as float64: what a dtype's own rounding is measured against."""
        return Inputs(widened(*self.leaves), self.labels, self.weights.double(), self.weight.double())


def inputs(n: int, seed: int, with_pair: bool, dtype: torch.dtype = torch.float64) -> Inputs:
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
    )


def loss_and_nll(version: ModuleType, given: Inputs) -> tuple[Tensor, Tensor]:
    loss, nll = version.head_loss(given.leaves[0], given.labels, given.weights, given.weight, given.pair, SCALE)
    return loss, nll


def results(version: ModuleType, given: Inputs) -> list[Tensor]:
    """Everything that NAMES names."""
    loss, nll = loss_and_nll(version, given)
    return [loss, nll, *torch.autograd.grad(SHARE * loss, given.leaves)]


@VERSIONS
@WITH_PAIR
def test_it_is_pytorchs_cross_entropy_of_the_merged_layer(version: ModuleType, with_pair: bool) -> None:
    given = inputs(300, 0, with_pair)
    merged = given.weight + SCALE * given.pair[1] @ given.pair[0] if given.pair else given.weight
    nll = cross_entropy(given.leaves[0] @ merged.T, given.labels, reduction="none")
    loss = (nll * given.weights).sum()
    expected = [loss, nll, *torch.autograd.grad(SHARE * loss, given.leaves)]
    for name, ours, theirs in zip(NAMES, results(version, given), expected, strict=False):
        assert_close(ours, theirs, 1e-12, name)  # float64 rounds at 1e-16; sums of a few hundred terms


@VERSIONS
@WITH_PAIR
def test_its_gradients_are_right(version: ModuleType, with_pair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 3)  # seven rows make three chunks, the last one short
    generator = seeded(1)
    labels, weights = torch.tensor([0, 4, 2, 2, 1, 3, 4]), torch.rand(7, generator=generator, dtype=torch.float64)
    weight = normal(generator, 5, 6).detach()
    leaves = [strided(generator, 7, 6)]
    leaves += [strided(generator, 3, 6), strided(generator, 5, 3)] if with_pair else []

    def loss(*moved: Tensor) -> Tensor:
        return 1.7 * loss_and_nll(version, Inputs(list(moved), labels, weights, weight))[0]

    assert gradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@WITH_PAIR
@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_the_chunked_version_errs_at_most_twice_as_much_as_plain_pytorch(
    n: int, with_pair: bool, dtype: torch.dtype
) -> None:
    """Around and across the borders of its chunks of 256 rows."""
    given = inputs(n, n, with_pair, dtype)
    sides = results(chunked, given), results(reference, given), results(reference, given.in_float64())
    for name, fast, plain, exact in zip(NAMES, *sides, strict=False):
        ratio = assert_as_exact(fast, plain, exact, name, seed=n)
        print(f"{name} {dtype}: {ratio:.2f} times plain PyTorch's error")


@VERSIONS
def test_huge_logits_give_finite_losses_and_gradients(version: ModuleType) -> None:
    """Logits of +-1e4, where exp overflows: the nll of the largest is 0, that of the smallest their difference."""
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    hidden = torch.full((2, 1), 1e4, requires_grad=True)
    loss, nll = loss_and_nll(version, Inputs([hidden], torch.tensor([0, 1]), torch.ones(2), weight))
    assert nll.tolist() == [0.0, 2e4]
    [gradient] = torch.autograd.grad(loss, [hidden])
    assert gradient.tolist() == [[0.0], [2.0]]


@VERSIONS
def test_without_gradients_it_gives_the_same_losses(version: ModuleType) -> None:
    given = inputs(257, 2, True, torch.float32)
    loss, nll = loss_and_nll(version, given)
    with torch.no_grad():
        again, nll_again = loss_and_nll(version, given)
    assert torch.equal(nll, nll_again)
    assert torch.equal(loss, again)
    assert not nll.requires_grad
