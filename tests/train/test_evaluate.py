"""A measurement is the mean over all trained tokens, however they are packed, and leaves nothing behind."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from gguflora.data import MicroBatch, pack
from gguflora.errors import MachineError
from gguflora.llamacpp import LlamaModel
from gguflora.train import Method, evaluate, named_parameters
from gguflora.train.evaluate import token_nll
from tests.tiny_training import Tiny, examples, tiny

evaluate_module = importlib.import_module("gguflora.train.evaluate")  # beside it, the package has a function so named


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("model"), torch.float32)


def test_it_is_llamacpps_mean_over_tokens_and_not_over_examples(model: Tiny, method: Method):
    """1e-5: what exact graphs differ by in float32. Lengths and weights are uneven, and neither counts."""
    encoded = examples()
    with LlamaModel(model.gguf.path, exact=True, threads=1) as llama:
        nll = [llama.nll(example.tokens, example.labels) for example in encoded]
    expected = np.concatenate(nll).mean()
    assert abs(expected - np.mean([losses.mean() for losses in nll])) > 0.01
    measured = evaluate(model.base, encoded, 1000, method)
    assert measured.nll == pytest.approx(expected, abs=1e-5)
    assert measured.tokens == sum(map(len, nll))


@pytest.mark.parametrize("room", [1, 30, 50, 10_000])
def test_packing_changes_nothing_but_rounding(model: Tiny, method: Method, room: int):
    whole = evaluate(model.decoder, examples(), 64, method)
    packed = evaluate(model.decoder, examples(), room, method)
    assert packed.nll == pytest.approx(whole.nll, abs=1e-5)
    assert packed.tokens == whole.tokens


def test_measuring_twice_gives_the_same_bits(model: Tiny, method: Method):
    assert evaluate(model.decoder, examples(), 64, method) == evaluate(model.decoder, examples(), 64, method)


def test_no_gradient_is_left(model: Tiny, method: Method):
    evaluate(model.decoder, examples(), 64, method)
    assert all(parameter.grad is None for _, parameter in named_parameters(model.pairs))


def test_the_losses_of_a_row_are_those_of_its_trained_tokens(model: Tiny, method: Method):
    [row] = pack(examples(), 1000)
    assert token_nll(model.decoder, row, method).shape == (int((row.labels >= 0).sum()),)


def refused_above(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Rows of more than so many tokens run out of memory; gives the lengths of the rows that were tried."""
    tried: list[int] = []
    whole = evaluate_module.micro_batch_nll

    def limited(decoder: Any, micro_batch: MicroBatch, method: Method) -> torch.Tensor:
        tried.append(len(micro_batch.tokens))
        if tried[-1] > tokens:
            raise torch.OutOfMemoryError("no room")
        return whole(decoder, micro_batch, method)

    monkeypatch.setattr(evaluate_module, "micro_batch_nll", limited)
    return tried


def test_when_memory_runs_out_it_is_measured_in_shorter_rows(
    model: Tiny, method: Method, monkeypatch: pytest.MonkeyPatch
):
    expected = evaluate(model.decoder, examples(), 56, method)  # 112, 64 and 56: each of the rows has its own limit
    tried = refused_above(monkeypatch, 56)
    assert evaluate(model.decoder, examples(), 112, method) == expected
    assert max(tried) > 56


def test_when_an_example_alone_is_too_much_the_error_says_so(
    model: Tiny, method: Method, monkeypatch: pytest.MonkeyPatch
):
    refused_above(monkeypatch, 39)
    with pytest.raises(MachineError, match=r"memory ran out while measuring on an example of 40 tokens .*\(no room\)"):
        evaluate(model.decoder, examples(), 1000, method)


def test_another_error_is_not_taken_for_lack_of_memory(model: Tiny, method: Method, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(evaluate_module, "micro_batch_nll", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(model.decoder, examples(), 1000, method)
