"""Our graph is llama.cpp's: on small random F32 models the logits are equal up to float32 rounding.

The bounds are in tests/numerics.py; that they can fail is shown here by planted wrong values, each of which exceeds
them 100 times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguflora.arch import LayerSpec, LinearSpec, ModelSpec, model_spec
from gguflora.gguf import Adapter, GgufFile, open_gguf, read_adapter, write_adapter
from gguflora.kernels import CPU, REFERENCE, Kernels
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, from_adapter, load_decoder, logits, with_pairs
from gguflora.run.verify import compare
from tests import tiny
from tests.numerics import (
    KL_BOUND,
    LARGEST_BOUND,
    Floats,
    alike,
    assert_same_graph,
    finite,
    log_softmax,
    logit_gap,
)
from tests.tiny import tiny_llama
from tests.tiny_training import EVERYTHING, SCALE, examples, full_adapter

SEED = 7
# Not more than 96 tokens: llama.cpp makes its angles by repeated float32 multiplication, so that its own distance from
# float64 grows with the position, here to 2.7e-5 of the deviation (ours: 1.7e-5).
TOKENS = np.concatenate([[tiny.IM_START], np.random.default_rng(SEED).integers(0, 300, 95)])

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"biases": True},
    "rope_freqs": {"rope_freqs": True},
    "untied head": {"tied": False},
    "linear rope scaling": {"rope_factor": 2.5},
    "heads of 6": {"head_dim": 6, "heads": 5, "kv_heads": 5},
    "one key for all queries": {"head_dim": 14, "heads": 4, "kv_heads": 1},
    "heads of width / heads": {"head_dim": 8},
    "everything": EVERYTHING,
}
KERNELS = pytest.mark.parametrize("kernels", [REFERENCE, CPU], ids=lambda kernels: kernels.name)


@dataclass(frozen=True)
class Case:
    """A model file, an adapter file on all its matrices, and llama.cpp's logits without it and at each scale."""

    gguf: GgufFile
    adapter: Path
    base: Floats
    scaled: dict[float, Floats]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), MODELS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), {})


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), EVERYTHING)


def make_case(folder: Path, numbers: dict[str, Any]) -> Case:
    gguf = open_gguf(tiny_llama(folder / "tiny.gguf", **numbers))
    adapter = folder / "adapter.gguf"
    write_adapter(adapter, full_adapter(gguf))
    # One thread: llama.cpp's threads wait for each other without sleeping, which a busy machine turns into minutes.
    with LlamaModel(gguf.path, exact=True, threads=1) as llama:
        base = llama.logits(TOKENS)
        handle = llama.load_lora_adapter(adapter)
        scaled = {}
        for scale in (0.0, 0.5, 1.0, 2.0):
            llama.set_lora_adapter(handle, scale)
            scaled[scale] = finite(llama.logits(TOKENS))
    return Case(gguf, adapter, finite(base), scaled)


def ours(decoder: Decoder) -> Floats:
    with torch.no_grad():
        return finite(logits(decoder, torch.from_numpy(TOKENS), torch.arange(len(TOKENS)), [0, len(TOKENS)]))


def loaded(gguf: GgufFile, kernels: Kernels, spec: ModelSpec | None = None) -> Decoder:
    return load_decoder(gguf, spec or model_spec(gguf), torch.float32, kernels)


def adapted(decoder: Decoder, path: Path, scale: float) -> Decoder:
    """The decoder with the adapter file on it, at alpha / rank times the user's scale."""
    adapter = read_adapter(path)
    [rank] = {pair.rank for pair in adapter.pairs.values()}
    return with_pairs(decoder, from_adapter(adapter), scale * adapter.alpha / rank)


@KERNELS
def test_the_base_is_llama_cpps(case: Case, kernels: Kernels) -> None:
    print(assert_same_graph(case.base, ours(loaded(case.gguf, kernels)), SEED))


@KERNELS
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_the_adapter_is_llama_cpps_at_every_scale(case: Case, kernels: Kernels, scale: float) -> None:
    decoder = adapted(loaded(case.gguf, kernels), case.adapter, scale)
    print(assert_same_graph(case.scaled[scale], ours(decoder), SEED))
    moved = logit_gap(case.base, case.scaled[scale]).largest
    assert (moved == 0) if scale == 0 else (moved > 1000 * LARGEST_BOUND)


# --- planted wrong values: each is one that a decoder could have by mistake ---


Plant = Callable[[ModelSpec], ModelSpec]


def every_layer(spec: ModelSpec, change: Callable[[LayerSpec], LayerSpec]) -> ModelSpec:
    return replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def with_rope(**numbers: Any) -> Plant:
    def plant(spec: ModelSpec) -> ModelSpec:
        rope = replace(spec.layers[0].mixer.rope, **numbers)
        return every_layer(spec, lambda layer: replace(layer, mixer=replace(layer.mixer, rope=rope)))

    return plant


def with_attention_scale(factor: float) -> Plant:
    return lambda spec: every_layer(
        spec, lambda layer: replace(layer, mixer=replace(layer.mixer, scale=layer.mixer.scale * factor))
    )


def without_bias(part: str, stem: str) -> Plant:
    def strip(layer: LayerSpec) -> LayerSpec:
        owner = getattr(layer, part)
        return replace(layer, **{part: replace(owner, **{stem: replace(getattr(owner, stem), bias=None)})})

    return lambda spec: every_layer(spec, strip)


def tied(spec: ModelSpec) -> ModelSpec:
    return replace(spec, output=LinearSpec(spec.token_embd, spec.output.shape, None), tied=True)


def swapped_norms(spec: ModelSpec) -> ModelSpec:
    return every_layer(spec, lambda layer: replace(layer, attn_norm=layer.ffn_norm, ffn_norm=layer.attn_norm))


PLAIN_PLANTS: dict[str, Plant] = {
    "rope base 1 % off": with_rope(base=505.0),
    "rope of the other kind": with_rope(kind="half_split"),
    "rope factor 1 % off": with_rope(scale=1 / 1.01),
    "epsilon 1 % off": lambda spec: replace(spec, epsilon=1.01e-3),
    "epsilon of another file": lambda spec: replace(spec, epsilon=1e-5),
    "attention scale 1 % off": with_attention_scale(1.01),
    "attention scale of width / heads": with_attention_scale((10 / 8) ** 0.5),
    "norms swapped": swapped_norms,
}
OTHER_PLANTS: dict[str, Plant] = {
    "rope factor left out": with_rope(scale=1.0),
    "rope_freqs left out": with_rope(factors=None),
    "head tied to the embedding": tied,
    **{f"bias of {stem} left out": without_bias("mixer", stem) for stem in ("attn_q", "attn_k", "attn_v")},
    "bias of attn_output left out": without_bias("mixer", "attn_output"),
    **{f"bias of {stem} left out": without_bias("ffn", stem) for stem in ("ffn_gate", "ffn_up", "ffn_down")},
}
ADAPTER_PLANTS = {
    "scale 1 % off": 1.01,
    "alpha in place of alpha / rank": 5.0,
    "alpha forgotten": 1 / SCALE,
}


@pytest.mark.parametrize("plant", PLAIN_PLANTS | OTHER_PLANTS)
def test_a_wrong_number_exceeds_the_bound_100_times(plain: Case, everything: Case, plant: str) -> None:
    """On the plain model, or, what that does not have, on the one that has everything."""
    case = plain if plant in PLAIN_PLANTS else everything
    change = (PLAIN_PLANTS | OTHER_PLANTS)[plant]
    gap = logit_gap(case.base, ours(loaded(case.gguf, CPU, change(model_spec(case.gguf)))))
    print(f"{plant}: {gap}")
    assert min(gap.largest / LARGEST_BOUND, gap.kl / KL_BOUND) > 100, gap


@pytest.mark.parametrize("plant", ADAPTER_PLANTS)
def test_a_wrong_adapter_scale_exceeds_the_bound_100_times(plain: Case, plant: str) -> None:
    decoder = adapted(loaded(plain.gguf, CPU), plain.adapter, ADAPTER_PLANTS[plant])
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
    decoder = loaded(everything.gguf, CPU)
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
    decoder = adapted(loaded(everything.gguf, CPU), everything.adapter, 1.0)  # llama.cpp has no adapter on: they differ
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
    assert report.ours == pytest.approx(a.mean(), rel=1e-9)
    assert report.llamacpp == pytest.approx(b.mean(), rel=1e-9)
    assert report.kl == pytest.approx(divergence.mean(), rel=1e-9)
    error = (a - b).std() / np.sqrt(len(a))
    assert report.allowed == pytest.approx(2 * divergence.mean() + 3 * error, rel=1e-9)
    assert dataclasses.replace(report, ours=report.llamacpp + 0.99 * report.allowed).agrees
    assert not dataclasses.replace(report, ours=report.llamacpp - 1.01 * report.allowed).agrees
