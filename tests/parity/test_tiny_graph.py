"""Our graph is llama.cpp's on small random F32 models, by each way to hold the weights and to compute the losses.

That each row of the table of architectures is right is test_architectures.py's to prove. The bounds are in
tests/numerics.py; that they can fail is shown by planted wrong values, each of which exceeds them 100 times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguflora.arch import ModelSpec, model_spec
from gguflora.gguf import Adapter, read_adapter, write_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import PackedRow, logits
from gguflora.run.verify import compare
from gguflora.train import Method
from tests.numerics import KL_BOUND, LARGEST_BOUND, alike, assert_same_graph, finite, log_softmax, logit_gap
from tests.parity import plants
from tests.parity.cases import ADAPTER_SCALE, SEED, TOKENS, USER_SCALES, Case, adapted, loaded, make_case, ours
from tests.parity.plants import Plant
from tests.tiny_training import EVERYTHING, examples, measured

pytestmark = pytest.mark.usefixtures("one_thread")

GEMMA3: dict[str, Any] = {
    "softcap": 15.0,
    "rope_factor": 2.5,
    # llama.cpp reads GELU from a table of float16 numbers, but not beyond +-10 (ggml-cpu/vec.h, ggml_vec_geglu_f32):
    # gates as wide as this leave nothing of the table's rounding, and post_ffw_norm takes the width away again.
    "gate_gain": 1e4,
}
"""A gemma3 whose graph is exact."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "biases": ("llama", {"biases": True}),
    "rope_freqs": ("llama", {"rope_freqs": True}),
    "untied head": ("llama", {"tied": False}),
    "linear rope scaling": ("llama", {"rope_factor": 2.5}),
    "one key for all queries": ("llama", {"head_dim": 14, "heads": 4, "kv_heads": 1}),
    "heads of width / heads": ("llama", {"head_dim": 8}),
    "everything": ("llama", EVERYTHING),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", GEMMA3),
}
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["resident", "packed"])


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, numbers = MODELS[request.param]
    return make_case(tmp_path_factory.mktemp("tiny"), architecture, **numbers)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), "gemma3", **GEMMA3)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), "llama", **EVERYTHING)


@PACKED
def test_the_base_is_llama_cpps(case: Case, packed: bool) -> None:
    print(assert_same_graph(case.base, ours(loaded(case.gguf, packed=packed)), SEED))


@PACKED
@pytest.mark.parametrize("scale", USER_SCALES)
def test_the_adapter_is_llama_cpps_at_every_scale(case: Case, packed: bool, scale: float) -> None:
    decoder = adapted(loaded(case.gguf, packed=packed), case.adapter, scale)
    print(assert_same_graph(case.scaled[scale], ours(decoder), SEED))
    moved = logit_gap(case.base, case.scaled[scale]).largest
    assert (moved == 0) if scale == 0 else (moved > 1000 * LARGEST_BOUND)


def test_the_losses_that_are_trained_are_llama_cpps(case: Case, method: Method) -> None:
    """With the adapter on, of every token, by each way to compute them."""
    tokens, later = torch.from_numpy(TOKENS), np.arange(1, len(TOKENS))
    theirs = -log_softmax(case.scaled[1.0])[later - 1, TOKENS[later]]
    labels = torch.where(torch.arange(len(tokens)) > 0, tokens, -100)
    row = PackedRow(tokens, torch.arange(len(tokens)), [0, len(tokens)], labels, torch.ones(len(tokens)))
    mine = finite(measured(adapted(loaded(case.gguf), case.adapter, 1.0), row, method))
    largest = np.abs(mine - theirs).max()
    print(f"nll {mine.mean():.6f}, largest difference {largest:.1e}")
    # Two logits' worth: the token's own, and a mean over all of them.
    assert largest <= 2 * LARGEST_BOUND * case.scaled[1.0].std()


# --- planted wrong values: each is one that a decoder could have by mistake ---


def in_windowed_layers(plant: Plant) -> Plant:
    """The plant in the layers with a window alone."""

    def only(spec: ModelSpec) -> ModelSpec:
        both = zip(spec.layers, plant(spec).layers, strict=True)
        chosen = (wrong if right.mixer.window else right for right, wrong in both)
        return dataclasses.replace(spec, layers=tuple(chosen))

    return only


def percent_off(value: float) -> float:
    return 1.01 * value


PLAIN_PLANTS: dict[str, Plant] = {
    "rope base 1 % off": plants.rope(base=percent_off),
    "rope factor 1 % off": plants.rope(scale=percent_off),
    "epsilon 1 % off": plants.model(epsilon=percent_off),
    "attention scale 1 % off": plants.mixer(scale=percent_off),
}
GEMMA3_PLANTS: dict[str, Plant] = {
    "window one too small": plants.windows(lambda _, window: window and window - 1),
    "window one too large": plants.windows(lambda _, window: window and window + 1),
    "rope base of windowed layers 1 % off": in_windowed_layers(plants.rope(base=percent_off)),
    "rope factor in windowed layers": in_windowed_layers(plants.rope(scale=1 / 2.5)),
    "embedding scale 1 % off": plants.model(embedding_scale=percent_off),
    "soft cap 1 % off": plants.model(softcap=percent_off),
}
"""Finer than those of test_architectures.py, where GELU's table hides what is small in gemma3."""

ADAPTER_PLANTS = {
    "scale 1 % off": 1.01,
    "alpha in place of alpha / rank": 5.0,
    "alpha forgotten": 1 / ADAPTER_SCALE,
}


@pytest.mark.parametrize("plant", PLAIN_PLANTS | GEMMA3_PLANTS)
def test_a_slightly_wrong_number_exceeds_the_bound_100_times(plain: Case, gemma3: Case, plant: str) -> None:
    case = plain if plant in PLAIN_PLANTS else gemma3
    change = (PLAIN_PLANTS | GEMMA3_PLANTS)[plant]
    gap = logit_gap(case.base, ours(loaded(case.gguf, change(model_spec(case.gguf)))))
    print(f"{plant}: {gap}")
    assert min(gap.largest / LARGEST_BOUND, gap.kl / KL_BOUND) > 100, gap


@pytest.mark.parametrize("plant", ADAPTER_PLANTS)
def test_a_wrong_adapter_scale_exceeds_the_bound_100_times(plain: Case, plant: str) -> None:
    decoder = adapted(loaded(plain.gguf), plain.adapter, ADAPTER_PLANTS[plant])
    gap = logit_gap(plain.scaled[1.0], ours(decoder))
    print(f"{plant}: {gap}")
    assert min(gap.largest / LARGEST_BOUND, gap.kl / KL_BOUND) > 100, gap


# --- each pair alone ---

STEMS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


@pytest.fixture(scope="module")
def llama(everything: Case) -> Iterator[LlamaModel]:
    with LlamaModel(everything.gguf.path, exact=True, threads=1) as model:
        yield model


@pytest.mark.parametrize("stem", STEMS)
def test_a_pair_alone_moves_llama_cpps_logits_as_it_moves_ours(
    everything: Case, llama: LlamaModel, stem: str, tmp_path: Path
) -> None:
    """Every layer's pair of this kind: same direction, same size. An adapter that loads and does nothing is refused."""
    whole = read_adapter(everything.adapter)
    names = [name for name in whole.pairs if name.split(".")[-2] == stem]
    assert len(names) == (1 if stem == "output" else 3)
    decoder = loaded(everything.gguf)
    before = ours(decoder)
    for name in names:
        write_adapter(tmp_path / "one.gguf", Adapter("llama", whole.alpha, {name: whole.pairs[name]}))
        handle = llama.load_lora_adapter(tmp_path / "one.gguf")
        llama.set_lora_adapter(handle)
        theirs = finite(llama.logits(TOKENS)) - everything.base
        llama.free_lora_adapter(handle)
        mine = ours(adapted(decoder, tmp_path / "one.gguf", 1.0)) - before
        cosine, ratio = alike(mine, theirs)
        print(f"{name}: cosine 1 - {1 - cosine:.1e}, norm ratio 1 + {ratio - 1:.1e}")
        assert np.abs(theirs).max() > 100 * LARGEST_BOUND * everything.base.std(), f"{name} hardly acts"
        assert cosine > 0.999, name
        assert abs(ratio - 1) < 0.01, name


# --- the comparison that every training run makes ---


def test_what_a_run_reports_is_what_is_measured_here(everything: Case, llama: LlamaModel) -> None:
    """run.verify.compare's losses, KL and allowance, from the logits and their definitions."""
    encoded = examples([30, 9, 25], [1.0, 1.0, 1.0])
    decoder = adapted(loaded(everything.gguf), everything.adapter, 1.0)  # llama.cpp has no adapter on: they differ
    mine, theirs, kl = [], [], []
    for example in encoded:
        at = np.flatnonzero(example.labels >= 0)
        row = torch.from_numpy(example.tokens.astype(np.int64))
        with torch.no_grad():
            q = log_softmax(finite(logits(decoder, row, torch.arange(len(row)), [0, len(row)])))[at - 1]
        p = log_softmax(finite(llama.logits(example.tokens)))[at - 1]
        mine.append(-q[np.arange(len(at)), example.tokens[at]])
        theirs.append(-p[np.arange(len(at)), example.tokens[at]])
        kl.append((np.exp(p) * (p - q)).sum(-1))
    a, b, divergence = (np.concatenate(parts) for parts in (mine, theirs, kl))
    report = compare(decoder, llama, encoded)
    assert report.tokens == len(a)
    assert report.ours == pytest.approx(a.mean(), rel=1e-6)  # float32: there, short examples share a row
    assert report.llamacpp == pytest.approx(b.mean(), rel=1e-9)
    assert report.kl == pytest.approx(divergence.mean(), rel=1e-6)
    error = (a - b).std() / np.sqrt(len(a))
    assert report.allowed == pytest.approx(2 * divergence.mean() + 3 * error, rel=1e-6)
    assert dataclasses.replace(report, ours=report.llamacpp + 0.99 * report.allowed).agrees
    assert not dataclasses.replace(report, ours=report.llamacpp - 1.01 * report.allowed).agrees
