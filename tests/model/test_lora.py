"""New pairs start as PEFT's do, are nothing to begin with, and depend on the seed and their own name alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gguflora.arch import LinearSpec, resolve_targets
from gguflora.model import from_adapter, logits, new_pairs, to_adapter, with_pairs
from tests.numerics import finite
from tests.tiny_training import EVERYTHING, SCALE, full_adapter, tiny

WIDE = LinearSpec("blk.0.ffn_down.weight", (300, 900), None)
RANK = 64
DRAWN = RANK * WIDE.shape[1]  # numbers in its lora_a


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return new_pairs([WIDE], RANK, seed=3)[WIDE.name].lora_a.detach()


def test_a_is_uniform_within_one_over_the_root_of_its_inputs(drawn: Tensor) -> None:
    """PEFT: kaiming_uniform_ with a = sqrt(5), so a bound of sqrt(6 / ((1 + 5) in)) = 1 / sqrt(in)."""
    bound = 1 / math.sqrt(WIDE.shape[1])
    largest = float(drawn.abs().max())
    assert 0.999 * bound < largest <= bound  # of 57,600 uniform numbers, one is in the outer thousandth
    # Uniform in +-b: variance b^2 / 3, and that of the squares 4 b^4 / 45. Four standard errors.
    squares = drawn.double().square()
    assert abs(float(squares.mean()) - bound**2 / 3) < 4 * math.sqrt(4 / 45 / DRAWN) * bound**2
    assert abs(float(drawn.double().mean())) < 4 * bound / math.sqrt(3 * DRAWN)


def test_a_has_the_distribution_of_torchs_own_initialiser(drawn: Tensor) -> None:
    """Two-sample Kolmogorov-Smirnov: 1.95 sqrt(2 / n) is exceeded once in 1,000 by equal distributions."""
    theirs = torch.empty_like(drawn)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    limit = 1.95 * math.sqrt(2 / DRAWN)
    assert ks_distance(drawn, theirs) < limit
    assert ks_distance(drawn, theirs * 1.03) > limit  # 3 % wider is seen
    normal = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0)) * theirs.std()
    assert ks_distance(drawn, normal) > limit


def ks_distance(one: Tensor, other: Tensor) -> float:
    """Largest difference between the two samples' shares below any value."""
    a, b = np.sort(finite(one).ravel()), np.sort(finite(other).ravel())
    values = np.concatenate([a, b])
    shares = [np.searchsorted(side, values, side="right") / len(side) for side in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_b_is_zero_and_both_are_float32_and_want_gradients() -> None:
    pair = new_pairs([WIDE], RANK, seed=0)[WIDE.name]
    assert not pair.lora_b.any()
    assert (pair.lora_a.shape, pair.lora_b.shape) == ((RANK, 900), (300, RANK))
    for half in (pair.lora_a, pair.lora_b):
        assert half.dtype is torch.float32
        assert half.requires_grad
        assert half.is_leaf


def test_the_seed_decides_and_torchs_global_state_does_not() -> None:
    torch.manual_seed(1)
    first = new_pairs([WIDE], RANK, seed=5)[WIDE.name].lora_a
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = (new_pairs([WIDE], RANK, seed=seed)[WIDE.name].lora_a for seed in (5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_another_target_changes_no_other_pair(tmp_path: Path) -> None:
    spec = tiny(tmp_path, torch.float32).spec
    few = new_pairs(resolve_targets(spec, ("attn_v", "ffn_up"), 5), 5, seed=0)
    many = new_pairs(resolve_targets(spec, ("all-linear",), 5), 5, seed=0)
    assert len(few) == 2 * 3 < len(many) == 7 * 3
    for name, pair in few.items():
        assert torch.equal(pair.lora_a, many[name].lora_a)
    drawn = [pair.lora_a.detach().numpy().tobytes() for pair in many.values()]
    assert len(set(drawn)) == len(drawn)  # and no two pairs are drawn alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_step_the_model_is_its_base_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny(tmp_path, dtype, **EVERYTHING)
    fresh = with_pairs(model.base, new_pairs(model.spec.linears(), 5, seed=0), SCALE)
    row = (torch.arange(40) * 7 % 300, torch.arange(40), [0, 40])
    with torch.no_grad():
        base, started, trained = (logits(decoder, *row) for decoder in (model.base, fresh, model.decoder))
    assert torch.equal(base, started)
    assert not torch.equal(base, trained)  # an adapter that is not zero shows


def test_pairs_survive_the_way_through_an_adapter(tmp_path: Path) -> None:
    """And what was handed over does not change when training goes on."""
    model = tiny(tmp_path, torch.float32)
    adapter = full_adapter(model.gguf)
    pairs = from_adapter(adapter)
    back = to_adapter(pairs, "llama", adapter.alpha, base=None)  # type: ignore[arg-type]  # no base is needed here
    with torch.no_grad():
        for pair in pairs.values():
            pair.lora_a.zero_()
            pair.lora_b.zero_()
    assert back.pairs.keys() == adapter.pairs.keys()
    for name, given in adapter.pairs.items():
        assert np.array_equal(back.pairs[name].lora_a, given.lora_a)
        assert np.array_equal(back.pairs[name].lora_b, given.lora_b)
