"""The tiny model can fail a test: held to llama.cpp, each of its numbers matters, and so does its adapter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gguflora.gguf import Adapter, open_gguf, read_adapter, write_adapter
from tests import tiny
from tests.tiny import TinySpec, random_adapter, tiny_llama

llamacpp = pytest.importorskip("gguflora.llamacpp.model")

TOKENS = np.concatenate([[tiny.IM_START], np.random.default_rng(7).integers(0, 300, 63)])
BOUND = 1e-4
"""Parity bound on max |difference| / deviation of the logits, for F32 files (docs/design.md)."""


def logits(path, adapter=None, scale=1.0):
    with llamacpp.LlamaModel(path, exact=True) as model:
        if adapter:
            model.set_lora_adapter(model.load_lora_adapter(adapter), scale)
        return model.logits(TOKENS).astype(np.float64)


def difference(a, b):
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return np.abs(a - b).max() / a.std()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tiny_llama(tmp_path_factory.mktemp("tiny") / "base.gguf")
    return path, logits(path)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    files = [tiny_llama(tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert files[0] == files[1] != files[2]


def test_no_two_sizes_are_equal():
    spec = TinySpec()
    sizes = [spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.ffn, 300, 5, len(TOKENS)]
    assert len(set(sizes)) == len(sizes)
    assert spec.heads * spec.head_dim != spec.width
    assert 1 < spec.kv_heads < spec.heads


@pytest.mark.parametrize("numbers", [{}, {"seed": 1}, {"tied": False}, {"biases": True}])
def test_logits_deviate_by_more_than_1_at_every_position(tmp_path, numbers):
    deviations = logits(tiny_llama(tmp_path / "t.gguf", **numbers)).std(axis=1)
    assert deviations.min() > 1


@pytest.mark.parametrize(
    "numbers",
    [
        {"epsilon": 1.01e-3},
        {"rope_base": 505.0},
        {"rope_factor": 1.01},
        {"rope_freqs": True},
        {"biases": True},
        {"tied": False},
        {"kv_heads": 3},
        {"head_dim": 8},
        {"layers": 2},
    ],
)
def test_one_wrong_number_exceeds_the_parity_bound_100_times(tmp_path, base, numbers):
    """A decoder that is 1 % off in one number can't pass for right."""
    assert difference(base[1], logits(tiny_llama(tmp_path / "t.gguf", **numbers))) > 100 * BOUND


def test_attention_is_sharp(base):
    """Entropy of the first layer's attention, computed by hand, well below that of uniform attention."""
    file, spec = open_gguf(base[0]), TinySpec()
    q, k, norm, embedding = (
        file.raw(name).view("<f4").reshape(file.tensors[name].shape).astype(np.float64)
        for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight", "token_embd.weight")
    )
    x = embedding[TOKENS]
    x = x / np.sqrt((x * x).mean(1, keepdims=True) + spec.epsilon) * norm
    # Each position looks at all, so without a mask; and without rope, which turns but does not stretch.
    queries = (x @ q.T).reshape(-1, spec.heads, spec.head_dim)
    keys = (x @ k.T).reshape(-1, spec.kv_heads, spec.head_dim).repeat(spec.heads // spec.kv_heads, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) * spec.head_dim**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    entropy = -(weights * np.log(weights)).sum(-1)
    assert entropy.mean() < 0.8 * np.log(len(TOKENS))


def test_a_tenth_of_the_embedding_rows_is_below_epsilon(base):
    rows = open_gguf(base[0]).raw("token_embd.weight").view("<f4").reshape(300, -1)
    assert 0.1 < ((rows * rows).mean(axis=1) < TinySpec().epsilon).mean() < 0.4


def test_text_goes_through_llama_cpp_and_back(base):
    text = "The user is in the other tower, and it's 3.14 of those! ünïcödé 日本 \x00\x7f 🎉\n\n  x"
    with llamacpp.LlamaModel(base[0], exact=True) as model:
        tokens = model.tokenize(text)
        assert model.detokenize(tokens) == text
        assert len(tokens) < len(text.encode())  # merges are used
        turn = model.tokenize("<|im_start|>user\nhi<|im_end|>\n")
        assert turn[0] == tiny.IM_START
        assert turn[-2] == tiny.IM_END
        assert [model.ends_generation(token) for token in (tiny.ENDOFTEXT, tiny.IM_START, tiny.IM_END)] == [
            True,
            False,
            True,
        ]


def test_each_merge_joins_what_is_there_and_makes_something_new():
    known = set(tiny.byte_letters().values())
    assert len(known) == 256
    for merge in tiny.MERGES:
        left, right = merge.split(" ")
        assert {left, right} <= known
        assert left + right not in known
        known.add(left + right)


def test_the_template_is_that_of_the_real_model(base, smollm2_path):
    key = "tokenizer.chat_template"
    assert open_gguf(base[0]).metadata[key] == open_gguf(smollm2_path).metadata[key]


def test_the_adapter_matters_and_each_pair_of_it_alone(tmp_path, base):
    path = tmp_path / "adapter.gguf"
    adapter = random_adapter(open_gguf(base[0]))
    write_adapter(path, adapter)
    whole = read_adapter(path)
    assert len(whole.pairs) == 7 * TinySpec().layers
    assert whole.alpha == 2.5 * 5
    assert difference(base[1], logits(base[0], path, 0.0)) == 0
    assert difference(base[1], logits(base[0], path)) > 1000 * BOUND
    for name, pair in adapter.pairs.items():
        write_adapter(path, Adapter("llama", adapter.alpha, {name: pair}))
        assert difference(base[1], logits(base[0], path)) > 100 * BOUND, name


def test_a_misspelt_number_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="rope_freq"):
        tiny_llama(tmp_path / "t.gguf", rope_freq=True)
    assert {field.name for field in dataclasses.fields(TinySpec)} >= {"rope_freqs", "biases", "tied"}
