"""A model of sizes that tiles are for trains by them as by plain PyTorch: each gradient, and what steps make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gguflora.config import TrainingConfig
from gguflora.data import pack
from gguflora.events import StepDone
from gguflora.kernels.lora_linear import explicit
from gguflora.kernels.operations import TORCH, Operations, compiled
from gguflora.kernels.threads import libgomp
from gguflora.model import LoraPair, Workspace, load_decoder, new_pairs, with_pairs
from gguflora.train import Job, Method, new_state, train
from gguflora.train.step import accumulate
from tests.numerics import assert_as_exact
from tests.tiny import random_adapter
from tests.tiny_training import SCALE, Tiny, examples, random_pairs, take_gradients, tiny

HAS_TILES = libgomp() is not None and compiled().lora_linear is not explicit
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not HAS_TILES, reason="the processor's products are not by tiles"),
]

SIZES = {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 96}
RANK = 6  # tiles take two ranks at a time


@pytest.fixture
def model(tmp_path: Path) -> Tiny:
    return tiny(tmp_path, torch.float64, **SIZES)


def method(operations: Operations) -> Method:
    return Method(Workspace(64, operations))


def gradients(model: Tiny, dtype: torch.dtype, operations: Operations) -> dict[str, Tensor]:
    base = load_decoder(model.gguf, model.spec, dtype, False)
    pairs = random_pairs(random_adapter(model.gguf, RANK, scale=SCALE), torch.promote_types(dtype, torch.float32))
    accumulate(with_pairs(base, pairs, SCALE), pack(examples(), micro_batch_tokens=50), method(operations))
    return take_gradients(pairs)


def test_its_gradients_err_at_most_twice_as_much_as_plain_pytorchs(model: Tiny) -> None:
    """Over several rows of several documents, with the layers' own order of products, norms and activations between."""
    fast, plain = (gradients(model, torch.bfloat16, operations) for operations in (compiled(), TORCH))
    exact = gradients(model, torch.float64, TORCH)
    assert len(exact) == 2 * 7 * 3
    for name, truth in exact.items():
        assert_as_exact(fast[name], plain[name], truth, name)


def test_nothing_but_the_head_is_left_to_the_library(model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests here would compare it with itself. The tiny vocabulary of 300 is no multiple of 32."""
    left: list[int] = []
    library = explicit.forward

    def forward(x: Tensor, weight: Tensor, *rest: object) -> None:
        left.append(len(weight))
        library(x, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(explicit, "forward", forward)
    gradients(model, torch.bfloat16, compiled())
    assert set(left) == {300}


def losses(model: Tiny, dtype: torch.dtype, operations: Operations) -> list[float]:
    """Of eight steps from new pairs, of all examples each."""
    base = load_decoder(model.gguf, model.spec, dtype, False)
    linears = [linear for layer in model.spec.layers for linear in layer.linears()]
    pairs: dict[str, LoraPair] = new_pairs(linears, RANK, 0)
    settings = TrainingConfig(batch_size=7, epochs=8, learning_rate=3e-3, warmup_steps=0)
    job = Job(with_pairs(base, pairs, SCALE), examples(), [], settings, Workspace(64, operations))
    events = train(job, new_state(pairs, 64, False), None, lambda: None)
    return [event.loss for event in events if isinstance(event, StepDone)]


def test_steps_teach_as_much_as_plain_pytorchs(model: Tiny) -> None:
    """A gradient that is right and lies transposed in memory once went wrong in the update: the loss still fell."""
    exact = losses(model, torch.float32, TORCH)
    assert exact[0] - exact[-1] > 5, "these steps taught nothing that could be compared"
    for fast, truth in zip(losses(model, torch.bfloat16, compiled()), exact, strict=True):
        assert abs(fast - truth) < 0.1, (fast, truth)  # plain PyTorch in bfloat16 is off by up to 0.02
