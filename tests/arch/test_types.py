"""The types that are said to be supported without torch are those that torch code dequantises."""

from __future__ import annotations

from gguflora.arch.types import DEQUANTISED
from gguflora.kernels.dequantise.reference import FUNCTIONS


def test_every_type_that_is_dequantised_is_listed_and_no_other():
    assert list(DEQUANTISED) == list(FUNCTIONS)
