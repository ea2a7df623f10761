"""A mask is a function of (seed, step, example, module) alone, drops the share it was told to, and keeps the mean."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate as running_sum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gguflora.data import pack
from gguflora.model import Dropout, PackedRow, with_pairs
from gguflora.train import Method, evaluate
from gguflora.train.step import packed_row
from tests.numerics import assert_close
from tests.tiny_training import (
    EVERYTHING,
    LENGTHS,
    SCALE,
    computed,
    examples,
    measured,
    method_named,
    take_gradients,
    tiny,
)

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, WIDTH, MODULE = 0.3, 40, "blk.1.attn_q.weight"


def dropout(lengths: dict[int, int], rate: float = RATE, seed: int = 5, step: int = 7) -> Dropout:
    """Masks of a row that holds, in this order, examples (by number) of so many tokens."""
    return Dropout(rate, seed, step, tuple(lengths), tuple(running_sum(lengths.values(), initial=0)))


def by_example(masks: Dropout, module: str = MODULE, dtype: torch.dtype = torch.float64) -> dict[int, Tensor]:
    """Each example's part of a mask."""
    mask = masks.mask(module, WIDTH, dtype)
    spans = pairwise(masks.document_starts)
    return {example: mask[start:end] for example, (start, end) in zip(masks.examples, spans, strict=True)}


# --- what it depends on ---


@pytest.mark.parametrize("order", [(11, 3, 8), (3, 8, 11), (8, 11), (11,)], ids=str)
def test_neither_packing_nor_order_changes_a_mask(order: tuple[int, ...]) -> None:
    lengths = {3: 12, 8: 1, 11: 30}
    together = by_example(dropout(lengths))
    other = by_example(dropout({example: lengths[example] for example in order}))
    for example, mask in other.items():
        assert torch.equal(mask, together[example]), example


def test_seed_step_example_and_module_each_change_it() -> None:
    mask = by_example(dropout({3: 12}))[3]
    others = {
        "seed": by_example(dropout({3: 12}, seed=6))[3],
        "step": by_example(dropout({3: 12}, step=8))[3],
        "example": by_example(dropout({4: 12}))[4],
        "module": by_example(dropout({3: 12}), "blk.1.attn_output.weight")[3],
        "layer": by_example(dropout({3: 12}), "blk.2.attn_q.weight")[3],
    }
    for what, other in others.items():
        # of 480 inputs two independent masks differ in 2 * 0.3 * 0.7 = 42 %; five standard errors are 11 %
        assert 0.31 < (mask != other).double().mean() < 0.53, what


def test_numbers_that_read_alike_are_kept_apart() -> None:
    """Seed 1 with step 11 is not seed 11 with step 1, and neither is step 1 with example 11."""
    masks = [
        by_example(dropout({example: 12}, seed=seed, step=step))[example]
        for seed, step, example in ((1, 11, 1), (11, 1, 1), (1, 1, 11), (1, 1, 1), (111, 1, 1))
    ]
    for index, mask in enumerate(masks):
        assert not any(torch.equal(mask, other) for other in masks[:index])


def test_torchs_global_state_neither_decides_nor_moves() -> None:
    torch.manual_seed(1)
    first = by_example(dropout({3: 12}))[3]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(by_example(dropout({3: 12}))[3], first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_compute_dtype_changes_no_choice() -> None:
    wide = by_example(dropout({3: 50}))[3]
    for dtype in (torch.float32, torch.bfloat16):
        mask = by_example(dropout({3: 50}), dtype=dtype)[3]
        assert mask.dtype is dtype
        assert torch.equal(mask > 0, wide > 0)


# --- what it does ---


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_it_drops_the_share_it_was_told_to_and_keeps_the_mean(rate: float) -> None:
    mask = by_example(dropout({3: 5000}, rate))[3]
    count = mask.numel()
    assert set(mask.unique().tolist()) == {0.0, 1 / (1 - rate)}
    error = math.sqrt(rate * (1 - rate) / count)  # standard error of a share
    assert abs((mask == 0).double().mean() - rate) < 4 * error
    assert abs(mask.mean() - 1) < 4 * error / (1 - rate)


def test_every_input_has_its_turn() -> None:
    """Over steps: no input is always dropped or never, and each one's mean is kept."""
    steps = 500
    masks = torch.stack([by_example(dropout({3: 6}, step=step))[3] for step in range(steps)])
    error = math.sqrt(RATE * (1 - RATE) / steps)
    assert ((masks == 0).double().mean(0) - RATE).abs().max() < 5 * error  # the worst of 240
    assert (masks.mean(0) - 1).abs().max() < 5 * error / (1 - RATE)


def test_neighbours_are_independent() -> None:
    """Along the tokens and along the width: what is dropped here says nothing about there."""
    dropped = (by_example(dropout({3: 2000}))[3] == 0).double() - RATE
    for one, other in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1])):
        correlation = float((one * other).mean()) / (RATE * (1 - RATE))
        assert abs(correlation) < 4 / math.sqrt(one.numel())


# --- in the model ---


def row_with_dropout(chosen: list[int], rate: float = RATE) -> PackedRow:
    """These of the seven examples as one row."""
    encoded = examples()
    row = packed_row(pack([encoded[index] for index in chosen], 1000)[0])
    return replace(row, dropout=dropout({index: LENGTHS[index] for index in chosen}, rate))


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3], [4], [5], [6]], [[3], [6, 1, 0], [5, 4, 2]]], ids=["7", "3"])
def test_any_cut_into_rows_gives_the_same_gradients(tmp_path: Path, method: Method, cut: list[list[int]]) -> None:
    model = tiny(tmp_path, torch.float64, **EVERYTHING)
    whole, _ = computed(model.decoder, row_with_dropout([0, 1, 2, 3, 4, 5, 6]), method)
    expected = take_gradients(model.pairs)
    parts = [computed(model.decoder, row_with_dropout(chosen), method)[0] for chosen in cut]
    assert sum(parts) == pytest.approx(whole, rel=1e-10)
    for name, gradient in take_gradients(model.pairs).items():
        assert_close(gradient, expected[name], 1e-10, name)


def test_dropout_shows(tmp_path: Path, method: Method) -> None:
    """So that the tests here mean something: another loss, and not by little."""
    model = tiny(tmp_path, torch.float64, **EVERYTHING)
    row = row_with_dropout([0, 1, 2, 3])
    with_it, without = (computed(model.decoder, its, method)[0] for its in (row, replace(row, dropout=None)))
    assert abs(with_it - without) > 1e-3 * without


def test_layers_that_read_the_same_input_share_a_mask(
    tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One draw for q, k and v, one for gate and up; forward and backward ask for the same ones."""
    asked: set[str] = set()
    mask_of = Dropout.mask

    def spied(self: Dropout, module: str, width: int, dtype: torch.dtype) -> Tensor:
        asked.add(module.removesuffix(".weight"))
        return mask_of(self, module, width, dtype)

    monkeypatch.setattr(Dropout, "mask", spied)
    computed(tiny(tmp_path, torch.float32, **EVERYTHING).decoder, row_with_dropout([0, 1]), method)
    readers = ("attn_q", "attn_output", "ffn_gate", "ffn_down")
    assert asked == {f"blk.{layer}.{stem}" for layer in range(3) for stem in readers} | {"output"}


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_pairs_read_through_the_mask_and_the_base_does_not(
    tmp_path: Path, method: Method, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask of zeros leaves the bare base, one of twos is the double scale: loss and gradients."""
    monkeypatch.setattr(
        Dropout,
        "mask",
        lambda self, _, width, dtype: torch.full((self.document_starts[-1], width), factor, dtype=dtype),
    )
    model, row = tiny(tmp_path, torch.float64, **EVERYTHING), row_with_dropout([0, 1, 2, 3])
    loss, nll = computed(model.decoder, row, method)
    found = take_gradients(model.pairs)
    same = with_pairs(model.base, model.pairs, factor * SCALE)
    expected_loss, expected_nll = computed(same, replace(row, dropout=None), method)
    expected = take_gradients(model.pairs)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert_close(nll, expected_nll, 1e-12)
    for name, gradient in found.items():
        if factor:
            assert_close(gradient, expected[name], 1e-12, name)
        else:
            assert not gradient.any(), name


# --- where it has no place ---


def test_measuring_drops_nothing(tmp_path: Path) -> None:
    """Even a row that brings its masks is measured without."""
    model, row = tiny(tmp_path, torch.float32, **EVERYTHING), row_with_dropout([0, 1, 2, 3])
    explicit = method_named("explicit")
    with_masks, without = (measured(model.decoder, its, explicit) for its in (row, replace(row, dropout=None)))
    assert torch.equal(with_masks, without)


def test_an_evaluation_asks_for_no_mask(tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a mask was asked for")

    monkeypatch.setattr(Dropout, "mask", refuse)
    model = tiny(tmp_path, torch.float32, **EVERYTHING)
    assert evaluate(model.decoder, examples(), 50, method).tokens > 0
    with pytest.raises(AssertionError, match="asked for"):  # the control: training does ask
        computed(model.decoder, row_with_dropout([0]), method)
