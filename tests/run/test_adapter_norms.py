"""Norms that are computed without the matrix are the matrix's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.gguf import Adapter, Pair
from gguflora.run.adapter_norms import change_norm, pair_facts, stem_facts

# sqrt of float64's epsilon: what a squared norm keeps of a norm, in parts of |A| |B|.
ROUNDING = 2e-8


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 1, shape).astype(np.float32)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_norm_of_the_change_is_that_of_the_product(out: int, columns: int, rank: int, seed: int):
    """Also where the rank is larger than the tensor."""
    rng = np.random.default_rng(seed)
    lora_a, lora_b = random(rng, rank, columns), random(rng, out, rank)
    expected = np.linalg.norm(lora_b.astype(np.float64) @ lora_a.astype(np.float64))
    allowed = ROUNDING * float(np.linalg.norm(lora_a)) * float(np.linalg.norm(lora_b))
    assert change_norm(lora_a, lora_b) == pytest.approx(expected, rel=1e-12, abs=allowed)


def test_a_pair_whose_product_vanishes_has_no_change():
    """A is not zero and B is not zero, but B reads only the row of A that is."""
    lora_a = np.array([[3, 4], [0, 0]], np.float32)
    lora_b = np.array([[0, 7], [0, 2]], np.float32)
    assert change_norm(lora_a, lora_b) == 0.0


def test_the_largest_numbers_of_float32_stay_finite():
    huge = np.full((2, 3), np.finfo(np.float32).max)
    assert change_norm(huge, huge.T) == pytest.approx(
        np.linalg.norm(huge.T.astype(np.float64) @ huge.astype(np.float64))
    )


def test_each_pair_has_its_own_scale_and_place():
    """llama.cpp divides alpha by the rank of each pair, not of the file (llama-adapter.h, get_scale)."""
    pairs = {
        "blk.11.attn_q.weight": Pair(np.array([[3, 4]], np.float32), np.array([[1], [0], [0]], np.float32)),
        "output.weight": Pair(np.eye(2, dtype=np.float32), np.array([[0, 2]], np.float32)),
    }
    q, output = pair_facts(Adapter("llama", 8.0, pairs))
    assert (q.stem, q.layer, q.rank, q.shape) == ("attn_q", 11, 1, (3, 2))
    assert (q.lora_a, q.lora_b, q.change) == (5.0, 1.0, 40.0)
    assert (output.stem, output.layer, output.rank, output.shape) == ("output", None, 2, (1, 2))
    assert (output.lora_a, output.lora_b, output.change) == (pytest.approx(2**0.5), 2.0, 8.0)


def test_stems_have_means_and_the_largest_and_count_what_does_nothing():
    def pair(size: float) -> Pair:
        return Pair(np.array([[1, 0]], np.float32), np.array([[size]], np.float32))

    pairs = {f"blk.{layer}.attn_k.weight": pair(size) for layer, size in enumerate((1, 0, 5))}
    [stem] = stem_facts(pair_facts(Adapter("llama", 2.0, pairs)))
    assert (stem.stem, stem.pairs, stem.ranks, stem.without_effect) == ("attn_k", 3, (1,), 1)
    assert (stem.lora_a, stem.lora_b, stem.change, stem.largest_change) == (1.0, 2.0, 4.0, 10.0)
