"""Each row of the table of architectures is llama.cpp's graph, on small random F32 models that have all it may have.

The bounds are in tests/numerics.py. That they can fail is shown by planted wrong values, at least one for every fact
that a spec states, each of which exceeds them 100 times. Run with -rP to see every figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gguflora.arch import model_spec
from gguflora.arch.architectures import ARCHITECTURES, Activation
from gguflora.errors import FileError, ModelError
from gguflora.gguf import Adapter, open_gguf, read_adapter, write_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import PackedRow, Workspace, row_nll
from tests.numerics import (
    EXACT,
    GELU_TABLE,
    KL_BOUND,
    LARGEST_BOUND,
    Bounds,
    alike,
    assert_same_graph,
    finite,
    logit_gap,
)
from tests.parity import plants
from tests.parity.cases import SEED, TOKENS, USER_SCALES, Case, adapted, loaded, make_case, ours, tabled_gelu
from tests.parity.figures import Figures
from tests.parity.plants import Plant, facts
from tests.rewritten import rewritten
from tests.tiny import OWN, QKV, tiny_model

EVERYTHING: dict[str, dict[str, Any]] = {
    "llama": {"biases": True, "tied": False, "rope_freqs": True, "rope_factor": 2.5},
    "qwen2": {"tied": False, "rope_factor": 2.5},
    "qwen3": {"tied": False, "rope_factor": 2.5, "biases": QKV, "head_dim": 14},
    "gemma3": {
        "tied": False,
        "rope_factor": 2.5,
        "biases": QKV,
        "head_dim": 14,
        "softcap": 6.0,
        "window_pattern": (True, False, True),
    },
}
"""The numbers of a model that has all that llama.cpp loads in this architecture."""

OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"heads of 6, as many keys as queries": {"head_dim": 6, "heads": 5, "kv_heads": 5}},
    "qwen2": {
        "heads of 6, as many keys as queries": {"head_dim": 6, "heads": 8, "kv_heads": 8},
        "one key for all queries": {"kv_heads": 1},
    },
    "qwen3": {
        "heads of 6, as many keys as queries": {"head_dim": 6, "heads": 5, "kv_heads": 5},
        "one key for all queries": {"kv_heads": 1, "heads": 4, "head_dim": 14},
    },
    "gemma3": {
        "no window": {"window": 0},
        "a window in every layer": {"window_pattern": 0},
        "all left to llama.cpp's defaults": {"window_pattern": None, "window_rope_base": 0, "layers": 7}
        | {"post_ffw_gain": 0.5},
        "62 layers": {"layers": 62, "width": 36, "post_ffw_gain": 0.03},
    },
}

VARIANTS = {
    (architecture, name): numbers
    for architecture in OWN
    for name, numbers in {"plain": {}, "everything": EVERYTHING[architecture], **OTHERS[architecture]}.items()
}


def bounds_of(architecture: str) -> Bounds:
    """By what llama.cpp's processor code does, not by our table: GELU through 16-bit numbers."""
    return GELU_TABLE if architecture == "gemma3" else EXACT


def name_of(key: tuple[str, str]) -> str:
    return ", ".join(key)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Case]:
    """Filled as they are asked for."""
    folder = tmp_path_factory.mktemp("architectures")

    class Cases(dict[tuple[str, str], Case]):
        def __missing__(self, key: tuple[str, str]) -> Case:
            place = folder / f"{len(self)}"
            place.mkdir()
            self[key] = make_case(place, key[0], **VARIANTS[key])
            return self[key]

    return Cases()


def test_every_row_of_the_table_is_proved_here() -> None:
    assert set(OWN) == set(EVERYTHING) == set(ARCHITECTURES)


# --- the graph ---


@pytest.mark.parametrize("key", VARIANTS, ids=name_of)
def test_the_base_is_llama_cpps(cases: dict[tuple[str, str], Case], key: tuple[str, str], figures: Figures) -> None:
    case = cases[key]
    gap = assert_same_graph(case.base, ours(loaded(case.gguf)), SEED, bounds_of(key[0]))
    print(name_of(key), gap)
    figures.gap(f"{key[0]}, tiny F32", "logits", gap, bounds_of(key[0]))
    assert case.base.std(axis=1).min() > 1  # so that there is something to be wrong about


@pytest.mark.parametrize("key", VARIANTS, ids=name_of)
def test_the_adapter_is_llama_cpps_at_every_scale(
    cases: dict[tuple[str, str], Case], key: tuple[str, str], figures: Figures
) -> None:
    case, bounds = cases[key], bounds_of(key[0])
    decoder = loaded(case.gguf)
    for scale in USER_SCALES:
        mine = ours(adapted(decoder, case.adapter, scale))
        gap = assert_same_graph(case.scaled[scale], mine, SEED, bounds)
        print(name_of(key), scale, gap)
        figures.gap(f"{key[0]}, tiny F32", "logits with an adapter, scales 0 to 2", gap, bounds)
        moved = logit_gap(case.base, case.scaled[scale])
        assert (moved.largest == 0) if scale == 0 else (bounds.times(moved) > 1000)


def test_all_but_the_activation_is_exact_in_gemma3_too(tmp_path: Path, figures: Figures) -> None:
    """With the feed-forward made 500 times quieter its table of GELU hardly counts, and the strict bounds hold."""
    case = make_case(tmp_path, "gemma3", post_ffw_gain=0.002)
    decoder = loaded(case.gguf)
    for theirs, mine in ((case.base, decoder), (case.scaled[2.0], adapted(decoder, case.adapter, 2.0))):
        gap = assert_same_graph(theirs, ours(mine), SEED, EXACT)
        print(gap)
        figures.gap("gemma3, tiny F32, its feed-forward quiet", "logits, scales 0 and 2", gap)


def test_what_is_left_in_gemma3_is_llama_cpps_table_of_gelu(
    cases: dict[tuple[str, str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table in place of GELU the difference goes: KL falls 400 times here."""

    case = cases["gemma3", "plain"]
    before = logit_gap(case.base, ours(loaded(case.gguf)))
    monkeypatch.setattr("gguflora.model.ffn.gated", tabled_gelu)
    after = logit_gap(case.base, ours(loaded(case.gguf)))
    print(before, after, sep="\n")
    assert before.kl > 20 * after.kl
    assert before.rms > 3 * after.rms


DOCUMENTS = (50, 12, 34)  # the first two windows long, in models that have one


@pytest.mark.parametrize("architecture", OWN)
def test_what_training_calls_the_loss_is_llama_cpps_nll(
    cases: dict[tuple[str, str], Case], architecture: str, figures: Figures
) -> None:
    """Token by token, by the path that training takes: documents packed into a row, each read alone by llama.cpp."""
    case = cases[architecture, "everything"]
    documents = np.split(TOKENS, np.cumsum(DOCUMENTS)[:-1])
    with LlamaModel(case.gguf.path, exact=True, threads=1) as llama:
        llama.set_lora_adapter(llama.load_lora_adapter(case.adapter))
        theirs = np.concatenate([llama.nll(document, labels_of(document)) for document in documents])
    row = PackedRow(
        tokens=torch.from_numpy(TOKENS),
        positions=torch.cat([torch.arange(length) for length in DOCUMENTS]),
        document_starts=[0, *np.cumsum(DOCUMENTS).tolist()],
        labels=torch.from_numpy(np.concatenate([labels_of(document) for document in documents])),
        weights=torch.ones(len(TOKENS)),
    )
    mine = finite(row_nll(adapted(loaded(case.gguf), case.adapter, 1.0), row, Workspace(len(TOKENS))))
    assert mine.shape == theirs.shape == (len(TOKENS) - len(DOCUMENTS),)
    difference = np.abs(mine - theirs) / case.scaled[1.0].std()
    rms = np.sqrt((difference**2).mean())
    print(f"{architecture}: nll {mine.mean():.6f}, difference {rms:.1e} rms, {difference.max():.1e} at most")
    # Twice what the logits may differ by: an nll has one logit and the sum of them all in it.
    bounds = bounds_of(architecture)
    assert rms <= 2 * (bounds.rms or np.inf)
    assert difference.max() <= 2 * (bounds.largest or np.inf)
    for kind, value, bound in (("rms", rms, bounds.rms), ("largest", difference.max(), bounds.largest)):
        if bound:
            measure = f"{kind} difference / deviation"
            figures.add(f"{architecture}, tiny F32", "nll of each token, packed", measure, value, 2 * bound)


def labels_of(document: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All but a document's first token are trained."""
    return np.concatenate([[-100], document[1:]])


# --- planted wrong values: each is one that a decoder could have by mistake ---

OTHER_KIND = {"consecutive": "half_split", "half_split": "consecutive"}
OTHER_ACTIVATION: dict[Activation, Activation] = {"silu": "gelu_tanh", "gelu_tanh": "silu"}

ANY_PLANTS: dict[str, Plant] = {
    "rope base 2 % off": plants.rope(base=lambda base: 1.02 * base),
    "rope of the other kind": plants.rope(kind=OTHER_KIND.__getitem__),
    "rope factor 1 % off": plants.rope(scale=lambda scale: scale / 1.01),
    "epsilon 5 % off": plants.model(epsilon=lambda epsilon: 1.05 * epsilon),
    "epsilon of most files": plants.model(epsilon=1e-5),
    "attention scale 2 % off": plants.mixer(scale=lambda scale: 1.02 * scale),
    "embeddings 2 % off": plants.model(embedding_scale=lambda scale: 1.02 * scale),
    "norms swapped": plants.norms(attn_norm="ffn_norm", ffn_norm="attn_norm"),
    "the last layer's norm in place of the output's": plants.model(output_norm="blk.2.ffn_norm.weight"),
    "the other activation": plants.activation(OTHER_ACTIVATION.__getitem__),
    "layers in reverse": plants.reversed_layers,
    "gate and up swapped": plants.swapped("ffn", "ffn_gate", "ffn_up"),
    "keys and values swapped": plants.swapped("mixer", "attn_k", "attn_v"),
    "capped logits": plants.model(softcap=lambda cap: None if cap else 30.0),
}
PLAIN_PLANTS: dict[str, dict[str, Plant]] = {
    "llama": {
        "attention scale of width / heads": plants.mixer(scale=8**-0.5),
        "scaled embeddings": plants.model(embedding_scale=48**0.5),
        "a window": plants.windows(lambda _index, _window: 21),
    },
    "qwen2": {
        "scaled embeddings": plants.model(embedding_scale=48**0.5),
        "a window": plants.windows(lambda _index, _window: 21),
    },
    "qwen3": {
        "attention scale of width / heads": plants.mixer(scale=8**-0.5),
        "scaled embeddings": plants.model(embedding_scale=48**0.5),
        "a window": plants.windows(lambda _index, _window: 21),
        "heads not normalised": plants.head_norms(attn_q_norm=None, attn_k_norm=None),
        "norms of queries and keys swapped": plants.head_norms(attn_q_norm="attn_k_norm", attn_k_norm="attn_q_norm"),
    },
    "gemma3": {
        "attention scale of width / heads": plants.mixer(scale=8**-0.5),
        "embeddings not scaled": plants.model(embedding_scale=1.0),
        "a window one wider": plants.windows(lambda _index, window: window and window + 1),
        "a window one narrower": plants.windows(lambda _index, window: window and window - 1),
        "no window": plants.windows(lambda _index, _window: None),
        "a window in every layer": plants.windows(lambda _index, _window: 21),
        "a window in all but the first of every 3": plants.windows(lambda index, _window: 21 if index % 3 else None),
        "a window in all but the last of every 2": plants.windows(lambda index, _window: None if index % 2 else 21),
        "one rope base for all": plants.rope(base=500.0),
        "the window's rope base for all": plants.rope(base=90.0),
        "heads not normalised": plants.head_norms(attn_q_norm=None, attn_k_norm=None),
        "norms of queries and keys swapped": plants.head_norms(attn_q_norm="attn_k_norm", attn_k_norm="attn_q_norm"),
        "no norm after attention": plants.norms(post_attention_norm=None),
        "no norm after the feed-forward": plants.norms(post_ffw_norm=None),
        "norms after the branches swapped": plants.norms(
            post_attention_norm="post_ffw_norm", post_ffw_norm="post_attention_norm"
        ),
        "the norm before the feed-forward taken for one after attention": plants.norms(
            post_attention_norm="ffn_norm", ffn_norm="post_attention_norm"
        ),
    },
}
QKV_PLANTS = {f"bias of {stem} left out": plants.without_bias("mixer", stem) for stem in ("attn_q", "attn_k", "attn_v")}
OUTPUT_PLANTS = {
    "head tied to the embedding": plants.tied,
    "the head's matrix for the embedding": plants.model(token_embd="output.weight"),
    "rope factor left out": plants.rope(scale=1.0),
}
EVERYTHING_PLANTS: dict[str, dict[str, Plant]] = {
    "llama": {
        **QKV_PLANTS,
        **OUTPUT_PLANTS,
        "bias of attn_output left out": plants.without_bias("mixer", "attn_output"),
        **{f"bias of {stem} left out": plants.without_bias("ffn", stem) for stem in ("ffn_gate", "ffn_up", "ffn_down")},
        "rope_freqs left out": plants.rope(factors=None),
    },
    "qwen2": {**QKV_PLANTS, **OUTPUT_PLANTS},
    "qwen3": {**QKV_PLANTS, **OUTPUT_PLANTS},
    "gemma3": {
        **QKV_PLANTS,
        **OUTPUT_PLANTS,
        "rope factor for windowed layers too": plants.rope(scale=1 / 2.5),
        "logits not capped": plants.model(softcap=None),
        "cap 5 % off": plants.model(softcap=lambda cap: 1.05 * cap),
        "windows as llama.cpp's default has them": plants.windows(lambda _index, _window: 21),
    },
}
OTHER_PLANTS: dict[tuple[str, str], dict[str, Plant]] = {
    ("gemma3", "all left to llama.cpp's defaults"): {
        "the last of every 5 layers without a window": plants.windows(lambda i, _w: 21 if i % 5 < 4 else None),
        "one rope base for all": plants.rope(base=500.0),
    },
    ("gemma3", "62 layers"): {"attention scale of other depths": plants.mixer(scale=10**-0.5)},
}

PLANTED: dict[tuple[tuple[str, str], str], Plant] = {
    (key, name): plant
    for key, planted in {
        **{(architecture, "plain"): ANY_PLANTS | PLAIN_PLANTS[architecture] for architecture in OWN},
        **{(architecture, "everything"): EVERYTHING_PLANTS[architecture] for architecture in OWN},
        **OTHER_PLANTS,
    }.items()
    for name, plant in planted.items()
}


@pytest.mark.parametrize(("key", "name"), PLANTED, ids=lambda part: part if isinstance(part, str) else name_of(part))
def test_a_wrong_fact_exceeds_the_bound_100_times(
    cases: dict[tuple[str, str], Case], key: tuple[str, str], name: str, figures: Figures
) -> None:
    """Both measures do where both are strict; with a table of GELU, where 100 times its rms is a tenth, one does."""
    case = cases[key]
    spec = model_spec(case.gguf)
    wrong = PLANTED[key, name](spec)
    assert wrong != spec
    gap = logit_gap(case.base, ours(loaded(case.gguf, wrong)))
    print(f"{name_of(key)}, {name}: {gap}")
    both = min(gap.kl / KL_BOUND, gap.largest / LARGEST_BOUND)
    times = both if bounds_of(key[0]) is EXACT else GELU_TABLE.times(gap)
    figures.add(f"{key[0]}, tiny F32", "a planted wrong fact", "times the bound", times, 100, at_least=True)
    assert times > 100, gap


@pytest.mark.parametrize("architecture", OWN)
def test_every_fact_of_a_spec_is_planted_wrongly_somewhere(tmp_path: Path, architecture: str) -> None:
    """A number or a name that the forward reads, and that no plant changes, would be a fact that nothing proves."""
    stated, planted = set(), set()
    for variant in ("plain", "everything"):
        key = (architecture, variant)
        spec = model_spec(open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture, **VARIANTS[key])))
        right = list(facts(spec))
        stated |= {path for path, value in right if value is not None}
        for (where, _), plant in PLANTED.items():
            if where == key:
                wrong = list(facts(plant(spec)))
                assert [path for path, _ in wrong] == [path for path, _ in right]
                planted |= {path for (path, value), (_, other) in zip(right, wrong, strict=True) if value != other}
    assert len(stated) > 20
    assert stated - planted == set()


# --- which files are loaded ---


@pytest.mark.parametrize("stem", ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"])
@pytest.mark.parametrize("architecture", OWN)
def test_a_bias_is_added_where_llama_cpp_adds_it_and_refused_where_it_refuses_it(
    tmp_path: Path, architecture: str, stem: str
) -> None:
    """In one layer alone; a bias that one program adds and the other does not know would be a wrong graph."""
    plain = open_gguf(tiny_model(tmp_path / "plain.gguf", architecture=architecture, biases=False))
    rows = plain.tensors[f"blk.1.{stem}.weight"].shape[0]
    bias = np.random.default_rng(SEED).normal(0, 1, rows)
    biased = rewritten(plain, tmp_path / "biased.gguf", tensors={f"blk.1.{stem}.bias": bias})
    try:
        with LlamaModel(biased.path, exact=True, threads=1) as llama:
            theirs = finite(llama.logits(TOKENS))
    except FileError:
        with pytest.raises(ModelError, match=rf"blk\.1\.{stem}\.bias is not part of"):
            model_spec(biased)
    else:
        print(assert_same_graph(theirs, ours(loaded(biased)), SEED, bounds_of(architecture)))
        assert bounds_of(architecture).times(logit_gap(theirs, ours(loaded(plain)))) > 100


# --- each pair alone ---


@pytest.fixture(scope="module", params=OWN)
def everything(
    cases: dict[tuple[str, str], Case], request: pytest.FixtureRequest
) -> Iterator[tuple[str, Case, LlamaModel]]:
    case = cases[request.param, "everything"]
    with LlamaModel(case.gguf.path, exact=True, threads=1) as llama:
        yield request.param, case, llama


@pytest.mark.parametrize(
    "stem", ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"]
)
def test_a_pair_alone_moves_llama_cpps_logits_as_it_moves_ours(
    everything: tuple[str, Case, LlamaModel], stem: str, tmp_path: Path, figures: Figures
) -> None:
    """Every layer's pair of this kind: same direction, same size. An adapter that loads and does nothing is refused."""
    architecture, case, llama = everything
    whole = read_adapter(case.adapter)
    names = [name for name in whole.pairs if name.split(".")[-2] == stem]
    assert len(names) == (1 if stem == "output" else 3)
    decoder = loaded(case.gguf)
    before = ours(decoder)
    for name in names:
        # Four times as strong as a pair among 22: it stands alone here, and must show above the table of GELU.
        write_adapter(tmp_path / "one.gguf", Adapter(architecture, 4 * whole.alpha, {name: whole.pairs[name]}))
        handle = llama.load_lora_adapter(tmp_path / "one.gguf")
        llama.set_lora_adapter(handle)
        theirs = finite(llama.logits(TOKENS)) - case.base
        llama.free_lora_adapter(handle)
        mine = ours(adapted(decoder, tmp_path / "one.gguf", 1.0)) - before
        cosine, ratio = alike(mine, theirs)
        effect = theirs.std() / case.base.std()
        print(f"{name}: cosine 1 - {1 - cosine:.1e}, norm ratio 1 + {ratio - 1:.1e}, effect {effect:.3f}")
        assert effect > 0.01, f"{name} hardly acts"
        assert cosine > 0.999, name
        assert abs(ratio - 1) < 0.01, name
        figures.effect(f"{architecture}, tiny F32", cosine, ratio)
