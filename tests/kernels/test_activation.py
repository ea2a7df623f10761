"""The gated activations are their formulas, and so are their gradients; the explicit version rounds no worse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gguflora.kernels.activation import explicit
from gguflora.kernels.activation.reference import gated
from tests.kernels.explicit_pair import Backward, blank, differentiable
from tests.kernels.random_inputs import normal, seeded, strided, widened
from tests.numerics import Floats, assert_as_exact, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

Gated = Callable[[Tensor, Tensor, str], Tensor]


def explicit_gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """The explicit version with the reference's arguments; gate and up are halves of one buffer, as in the model."""

    def forward(gate: Tensor, up: Tensor) -> tuple[Tensor, Backward]:
        gate, up = torch.cat([gate, up], 1).chunk(2, 1)
        y = blank(*gate.shape, dtype=gate.dtype)
        explicit.forward(gate, up, activation, y)

        def backward(dy: Tensor) -> tuple[Tensor, Tensor]:
            d_gate, d_up = blank(len(dy), 2 * dy.shape[1], dtype=dy.dtype).chunk(2, 1)
            again = blank(*y.shape, dtype=y.dtype)
            explicit.backward(dy, gate, up, activation, d_gate, d_up, again)
            assert torch.equal(again, y)
            return d_gate, d_up

        return y, backward

    return differentiable(forward, gate, up)


VERSIONS = pytest.mark.parametrize("version", [gated, explicit_gated])
KINDS = pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])


def silu_by_hand(gate: Floats) -> Floats:
    return gate / (1 + np.exp(-gate))


def gelu_by_hand(gate: Floats) -> Floats:
    """Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2; ggml/src/ggml-cpu/vec.h, ggml_gelu_f32."""
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


@VERSIONS
@pytest.mark.parametrize(("activation", "by_hand"), [("silu", silu_by_hand), ("gelu_tanh", gelu_by_hand)])
def test_it_is_its_formula_also_where_the_exponential_is_huge(
    version: Gated, activation: str, by_hand: Callable[[Floats], Floats]
) -> None:
    gate = np.array([[-700.0, -3.0, -1e-9, 0.0, 2.0, 700.0]])
    up = np.array([[5.0, -2.0, 3.0, 7.0, -1.5, 2.0]])
    y = version(torch.from_numpy(gate), torch.from_numpy(up), activation)
    assert_close(y, by_hand(gate) * up, 1e-15)
    assert_close(y[:, :-1], (by_hand(gate) * up)[:, :-1], 1e-15)  # 1,400 would hide the others


@VERSIONS
@KINDS
def test_its_gradients_are_right(version: Gated, activation: str) -> None:
    generator = seeded(0)
    inputs = [strided(generator, 3, 7), normal(generator, 3, 7, deviation=2.0)]
    assert gradcheck(lambda gate, up: version(gate, up, activation), inputs)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_explicit_version_errs_at_most_twice_as_much_as_plain_pytorch(activation: str, dtype: torch.dtype) -> None:
    generator = seeded(1)
    leaves = [normal(generator, 40, 88, dtype=dtype, deviation=2.0) for _ in range(2)]
    objective = normal(generator, 40, 88, dtype=dtype).detach()
    sides = []
    for version, given in ((explicit_gated, leaves), (gated, leaves), (gated, widened(*leaves))):
        y = version(*given, activation)
        sides.append([y, *torch.autograd.grad((y * objective.to(y.dtype)).sum(), given)])
    for name, fast, plain, exact in zip(("y", "d_gate", "d_up"), *sides, strict=True):
        if dtype is torch.float64:
            assert_close(fast, plain, 1e-15, name)
        else:
            print(f"{name} {dtype}: {assert_as_exact(fast, plain, exact, name):.2f} times plain PyTorch's error")
