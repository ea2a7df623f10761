"""SwiGLU is gate * sigmoid(gate) * up."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd import gradcheck

from gguflora.kernels.activation.reference import swiglu
from tests.kernels.random_inputs import normal, seeded, strided
from tests.numerics import assert_close


def test_it_is_its_formula_also_where_the_exponential_is_huge() -> None:
    gate = np.array([[-700.0, -3.0, -1e-9, 0.0, 2.0, 700.0]])
    up = np.array([[5.0, -2.0, 3.0, 7.0, -1.5, 2.0]])
    expected = gate / (1 + np.exp(-gate)) * up
    assert_close(swiglu(torch.from_numpy(gate), torch.from_numpy(up)), expected, 1e-15)


def test_its_gradients_are_right() -> None:
    generator = seeded(0)
    assert gradcheck(swiglu, [strided(generator, 3, 7), normal(generator, 3, 7, deviation=2.0)])
