"""Linear layers with their pairs by tiles round no worse than a library's products, whatever the sizes and threads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from gguflora.kernels.lora_linear import explicit
from gguflora.kernels.lora_linear.explicit import Block, StackedPairs
from gguflora.kernels.lora_linear.versions import LoraLinear
from gguflora.kernels.operations import compiled
from gguflora.kernels.threads import libgomp
from tests.kernels.explicit_pair import blank
from tests.kernels.random_inputs import normal, seeded
from tests.numerics import assert_as_exact

HAS_TILES = libgomp() is not None and compiled().lora_linear is not explicit
pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(not HAS_TILES, reason="the processor's products are not by tiles"),
]

SCALE = 2.5


@dataclass(frozen=True)
class Layers:
    """Layers of these outputs that share an input, each with a pair of a rank, or none where it is 0."""

    outs: tuple[int, ...]
    width: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Numbers:
    """What goes in."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor | None
    pairs: StackedPairs | None
    mask: Tensor | None = None

    def double(self) -> Numbers:
        """The same in float64."""
        pairs = self.pairs and StackedPairs(
            self.pairs.a.double(), tuple(Block(b.b.double(), b.rows, b.columns) for b in self.pairs.blocks), SCALE
        )
        tensors = (self.x, self.dy, self.weight, self.bias)
        x, dy, weight, bias = (None if tensor is None else tensor.double() for tensor in tensors)
        assert x is not None
        assert dy is not None
        assert weight is not None
        return Numbers(x, dy, weight, bias, pairs)


def drawn(layers: Layers, tokens: int, with_bias: bool = False, seed: int = 0) -> Numbers:
    """x, dy and the weights are parts of wider rows, as in the model."""
    generator = seeded(seed)

    def some(*shape: int, deviation: float = 1.0) -> Tensor:
        wide = normal(generator, shape[0], shape[1] + 32, dtype=torch.bfloat16, deviation=deviation).detach()
        return wide[:, : shape[1]]

    out, width = sum(layers.outs), layers.width
    rows, columns = ([0, *accumulate(sizes)] for sizes in (layers.outs, layers.ranks))
    blocks = tuple(
        Block(
            some(o, r, deviation=r**-0.5).contiguous(), slice(rows[i], rows[i] + o), slice(columns[i], columns[i] + r)
        )
        for i, (o, r) in enumerate(zip(layers.outs, layers.ranks, strict=True))
        if r
    )
    a = some(sum(layers.ranks), width, deviation=width**-0.5).contiguous()
    bias = normal(generator, out, dtype=torch.bfloat16).detach() if with_bias else None
    weight = some(out, width, deviation=width**-0.5)
    return Numbers(
        some(tokens, width), some(tokens, out), weight, bias, StackedPairs(a, blocks, SCALE) if blocks else None
    )


def results(version: LoraLinear, given: Numbers) -> dict[str, Tensor]:
    """Everything that comes out."""
    tokens, dtype = len(given.x), given.x.dtype
    ranks = 0 if given.pairs is None else len(given.pairs.a)
    y, dx = blank(tokens, len(given.weight), dtype=dtype), blank(*given.x.shape, dtype=dtype)
    c = blank(tokens, ranks, dtype=dtype) if ranks else None
    version.forward(given.x, given.weight, given.bias, given.pairs, y, c, given.mask)
    delta = version.backward(given.dy, c, given.weight, given.pairs, dx, given.mask)
    found = {"y": y, "dx": dx}
    if c is not None and delta is not None:
        found |= {"c": c, "dc": delta.dc, "dA": version.a_gradient(delta, given.x)}
        found |= {f"dB of pair {i}": db for i, db in enumerate(delta.db)}
    return found


QKV = Layers((64, 32, 32), 96, (16, 16, 16))
CASES = {
    "q/k/v": (QKV, 77),
    "one layer": (Layers((96,), 64, (16,)), 64),
    "no pair": (Layers((96,), 64, (0,)), 33),
    "one without a pair": (Layers((64, 32, 32), 96, (6, 0, 10)), 45),
    "rank 2": (Layers((32,), 32, (2,)), 9),
    "rank 40": (Layers((64, 64), 96, (40, 40)), 50),
    "eight tokens": (QKV, 8),
    "more than an item's rows": (QKV, 1033),
    "a deep sum forward": (Layers((64,), 4160, (16,)), 530),
    "a deep sum backward": (Layers((4160,), 64, (16,)), 530),
}


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("layers", "tokens"), CASES.values(), ids=CASES)
def test_it_errs_at_most_twice_as_much_as_a_librarys_products(layers: Layers, tokens: int, with_bias: bool) -> None:
    given = drawn(layers, tokens, with_bias)
    fast, plain = results(compiled().lora_linear, given), results(explicit, given)
    assert fast.keys() == plain.keys()
    for name, exact in results(explicit, given.double()).items():
        # gradients of pairs are float32 here: held to what the library's bfloat16 of them is
        ratio = assert_as_exact(fast[name].to(plain[name].dtype), plain[name], exact, name)
        print(f"{name}: {ratio:.2f} times the library's error")


def test_a_pairs_gradients_are_not_rounded_to_bfloat16() -> None:
    """They are sums over all tokens, and go to float32 parameters."""
    found = results(compiled().lora_linear, drawn(QKV, 40))
    for name in ("dA", "dB of pair 0"):
        assert found[name].dtype is torch.float32
        assert not torch.equal(found[name], found[name].bfloat16().float())


def test_a_zero_b_changes_no_bit() -> None:
    """A young pair adds nothing, and must not round what is there."""
    given = drawn(QKV, 40)
    assert given.pairs is not None
    zeros = tuple(Block(torch.zeros_like(block.b), block.rows, block.columns) for block in given.pairs.blocks)
    young = Numbers(given.x, given.dy, given.weight, None, StackedPairs(given.pairs.a, zeros, SCALE))
    none = Numbers(given.x, given.dy, given.weight, None, None)
    first, second = (results(compiled().lora_linear, numbers) for numbers in (young, none))
    assert torch.equal(first["y"], second["y"])
    assert torch.equal(first["dx"], second["dx"])


@pytest.mark.parametrize(("layers", "tokens"), CASES.values(), ids=CASES)
def test_its_bits_do_not_depend_on_the_number_of_threads(layers: Layers, tokens: int) -> None:
    given = drawn(layers, tokens)
    together = results(compiled().lora_linear, given)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for name, value in results(compiled().lora_linear, given).items():
            assert torch.equal(value, together[name]), (name, threads)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """The last tile reaches back over rows that another tile has; the rows of an item are many."""
    given = drawn(QKV, 1033)
    few = Numbers(given.x[-9:], given.dy[-9:], given.weight, None, given.pairs)
    many, some = (results(compiled().lora_linear, numbers) for numbers in (given, few))
    for name in ("y", "dx", "c", "dc"):
        assert torch.equal(many[name][-9:], some[name]), name


OTHERS = {
    "seven tokens": drawn(QKV, 7),
    "an odd rank": drawn(Layers((64,), 64, (3,)), 40),
    "an odd size": drawn(Layers((64,), 40, (4,)), 40),
    "outputs that no panel has": drawn(Layers((40, 56), 64, (4, 4)), 40),
}


@pytest.mark.parametrize("given", OTHERS.values(), ids=OTHERS)
def test_what_tiles_cannot_do_the_library_does(given: Numbers) -> None:
    for name, value in results(compiled().lora_linear, given).items():
        assert_as_exact(
            value.to(torch.bfloat16), results(explicit, given)[name], results(explicit, given.double())[name], name
        )


def test_dropout_is_the_librarys() -> None:
    given = drawn(QKV, 40)
    mask = (torch.rand(given.x.shape, generator=seeded(5)) > 0.25).bfloat16()
    masked = Numbers(given.x, given.dy, given.weight, None, given.pairs, mask)
    ours = results(compiled().lora_linear, masked)
    for name, value in results(explicit, masked).items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("where", ["x", "dy", "weight"])
def test_a_number_that_is_none_stays_visible(where: str) -> None:
    given = drawn(QKV, 40)
    getattr(given, where)[-1, -1] = float("nan")
    found = results(compiled().lora_linear, given)
    assert found["dx" if where == "dy" else "y"].isnan().any()
    assert where == "weight" or (found["dA"].isnan().any() if where == "x" else found["dc"].isnan().any())
