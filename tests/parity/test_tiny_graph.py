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
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, PackedRow, from_adapter, load_decoder, logits, with_pairs
from gguflora.run.verify import compare
from gguflora.train import Method
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
from tests.tiny_training import EVERYTHING, SCALE, examples, full_adapter, measured

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 7
# Not more than 96 tokens: llama.cpp makes its angles by repeated float32 multiplication, so that its own distance from
# float64 grows with the position, here to 2.7e-5 of the deviation (ours: 1.7e-5).
TOKENS = np.concatenate([[tiny.IM_START], np.random.default_rng(SEED).integers(0, 300, 95)])

GEMMA3: dict[str, Any] = {
    "architecture": "gemma3",
    "qk_norm": True,
    "post_norms": True,
    "window": 20,
    "softcap": 15.0,
    "rope_factor": 2.5,
    # llama.cpp reads GELU from a table of float16 numbers, but not beyond +-10 (ggml-cpu/vec.h, ggml_vec_geglu_f32):
    # gates as wide as this leave nothing of the table's rounding, and post_ffw_norm takes the width away again.
    "gate_gain": 1e4,
}
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
    "qwen2": {"architecture": "qwen2", "biases": ("attn_q", "attn_k", "attn_v"), "head_dim": 8},
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
    "gemma3": GEMMA3,
}
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["resident", "packed"])


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
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny"), GEMMA3)


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


def loaded(gguf: GgufFile, spec: ModelSpec | None = None, packed: bool = False) -> Decoder:
    return load_decoder(gguf, spec or model_spec(gguf), torch.float32, packed)


def adapted(decoder: Decoder, path: Path, scale: float) -> Decoder:
    """The decoder with the adapter file on it, at alpha / rank times the user's scale."""
    adapter = read_adapter(path)
    [rank] = {pair.rank for pair in adapter.pairs.values()}
    return with_pairs(decoder, from_adapter(adapter), scale * adapter.alpha / rank)


@PACKED
def test_the_base_is_llama_cpps(case: Case, packed: bool) -> None:
    print(assert_same_graph(case.base, ours(loaded(case.gguf, packed=packed)), SEED))


@PACKED
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
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


# --- what the exact cases leave out ---


def test_gelu_is_llama_cpps_up_to_its_table(tmp_path: Path) -> None:
    """Gates of the usual width: llama.cpp rounds GELU's input and result to float16, at 2 ** -11 each.

    That is 4e-4 of each activation, and a KL of about its square, here 3e-7. With SiLU in its place it is 0.07.
    """
    case = make_case(tmp_path, GEMMA3 | {"gate_gain": 1.2})
    gap = logit_gap(case.base, ours(loaded(case.gguf)))
    print(gap)
    assert gap.kl < 1e-6
    silu = every_layer(model_spec(case.gguf), lambda layer: replace(layer, ffn=replace(layer.ffn, activation="silu")))
    wrong = logit_gap(case.base, ours(loaded(case.gguf, silu)))
    print(f"SiLU in its place: {wrong}")
    assert wrong.kl > 1e-4


def test_gemma3_of_62_layers_has_an_attention_scale_of_its_own(tmp_path: Path) -> None:
    """The 27B: 1 / sqrt(width / heads), where others take the heads' own size."""
    gguf = open_gguf(tiny_llama(tmp_path / "tiny.gguf", layers=62, **GEMMA3))
    with LlamaModel(gguf.path, exact=True, threads=1) as llama:
        theirs = llama.logits(TOKENS)
    print(assert_same_graph(theirs, ours(loaded(gguf))))
    as_others = with_attention_scale((8 / 10) ** 0.5)(model_spec(gguf))
    assert as_others.layers[0].mixer.scale == pytest.approx(10**-0.5)
    gap = logit_gap(theirs, ours(loaded(gguf, as_others)))
    assert min(gap.largest / LARGEST_BOUND, gap.kl / KL_BOUND) > 100, gap


# --- planted wrong values: each is one that a decoder could have by mistake ---


Plant = Callable[[ModelSpec], ModelSpec]


def every_layer(spec: ModelSpec, change: Callable[[LayerSpec], LayerSpec]) -> ModelSpec:
    return replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def windowed(layer: LayerSpec) -> bool:
    return layer.mixer.window is not None


def everywhere(_layer: LayerSpec) -> bool:
    return True


def with_rope(where: Callable[[LayerSpec], bool] = everywhere, **numbers: Any) -> Plant:
    def change(layer: LayerSpec) -> LayerSpec:
        rope = replace(layer.mixer.rope, **numbers)
        return replace(layer, mixer=replace(layer.mixer, rope=rope)) if where(layer) else layer

    return lambda spec: every_layer(spec, change)


def with_window(window: int | None, where: Callable[[LayerSpec], bool] = windowed) -> Plant:
    def change(layer: LayerSpec) -> LayerSpec:
        return replace(layer, mixer=replace(layer.mixer, window=window)) if where(layer) else layer

    return lambda spec: every_layer(spec, change)


def without_post_norm(name: str) -> Plant:
    return lambda spec: every_layer(spec, lambda layer: replace(layer, **{name: None}))


def without_head_norms(spec: ModelSpec) -> ModelSpec:
    return every_layer(
        spec, lambda layer: replace(layer, mixer=replace(layer.mixer, attn_q_norm=None, attn_k_norm=None))
    )


def swapped_head_norms(spec: ModelSpec) -> ModelSpec:
    def swap(layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        return replace(layer, mixer=replace(mixer, attn_q_norm=mixer.attn_k_norm, attn_k_norm=mixer.attn_q_norm))

    return every_layer(spec, swap)


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
GEMMA3_PLANTS: dict[str, Plant] = {
    "window one too small": with_window(19),
    "window one too large": with_window(21),
    "window left out": with_window(None),
    "window in every layer": with_window(20, everywhere),
    "rope base of windowed layers 1 % off": with_rope(windowed, base=50.5),
    "rope base of windowed layers that of the others": with_rope(windowed, base=500.0),
    "rope factor in windowed layers": with_rope(windowed, scale=1 / 2.5),
    "embedding scale 1 % off": lambda spec: replace(spec, embedding_scale=1.01 * 48**0.5),
    "embedding scale left out": lambda spec: replace(spec, embedding_scale=1.0),
    "soft cap 1 % off": lambda spec: replace(spec, softcap=15.15),
    "soft cap left out": lambda spec: replace(spec, softcap=None),
    "post_attention_norm left out": without_post_norm("post_attention_norm"),
    "post_ffw_norm left out": without_post_norm("post_ffw_norm"),
    "norms of heads left out": without_head_norms,
    "norms of q and k swapped": swapped_head_norms,
}
ADAPTER_PLANTS = {
    "scale 1 % off": 1.01,
    "alpha in place of alpha / rank": 5.0,
    "alpha forgotten": 1 / SCALE,
}


@pytest.mark.parametrize("plant", PLAIN_PLANTS | OTHER_PLANTS | GEMMA3_PLANTS)
def test_a_wrong_number_exceeds_the_bound_100_times(plain: Case, everything: Case, gemma3: Case, plant: str) -> None:
    """On the plain model, or, what that does not have, on the one that has everything, or on gemma3's."""
    case = plain if plant in PLAIN_PLANTS else everything if plant in OTHER_PLANTS else gemma3
    change = (PLAIN_PLANTS | OTHER_PLANTS | GEMMA3_PLANTS)[plant]
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
