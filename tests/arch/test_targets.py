"""Targets: the user's words become tensors of the file; what llama.cpp would not apply is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gguflora.arch import ModelSpec, canonical_targets, model_spec, resolve_targets
from gguflora.arch.architectures import Effect
from gguflora.arch.targets import OTHER_NAMES
from gguflora.errors import ModelError, UsageError
from gguflora.gguf import open_gguf
from tests.tiny import OWN, tiny_model

STEMS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def spec_of(folder: Path, architecture: str = "llama", tied: bool = True) -> ModelSpec:
    return model_spec(open_gguf(tiny_model(folder / "t.gguf", architecture=architecture, tied=tied)))


def names(spec: ModelSpec, *given: str) -> list[str]:
    return [target.name for target in resolve_targets(spec, given, rank=5)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", OWN)
def test_all_linear_is_every_linear_layer_inside_the_blocks(tmp_path: Path, architecture: str, tied: bool) -> None:
    """In the order of the computation, and without the output layer."""
    expected = [f"blk.{index}.{stem}.weight" for index in range(3) for stem in STEMS]
    assert names(spec_of(tmp_path, architecture, tied), "all-linear") == expected


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_is_that_layer_in_every_block(tmp_path: Path, stem: str) -> None:
    assert names(spec_of(tmp_path), stem) == [f"blk.{index}.{stem}.weight" for index in range(3)]


@pytest.mark.parametrize(("other", "stem"), [pair for pair in OTHER_NAMES.items() if pair[1] in STEMS])
def test_other_trainers_names_are_understood(tmp_path: Path, other: str, stem: str) -> None:
    spec = spec_of(tmp_path)
    assert names(spec, other) == names(spec, stem)


def test_two_ways_to_name_the_same_targets_are_one() -> None:
    assert canonical_targets(("v_proj", "attn_q", "q_proj")) == canonical_targets(("attn_q", "attn_v"))
    assert canonical_targets(("all-linear",)) == ("all-linear",)
    assert canonical_targets(("attn_q",)) != canonical_targets(("attn_k",))


def test_names_add_up_once_each_in_the_order_of_the_computation(tmp_path: Path) -> None:
    given = ("ffn_down", "blk.1.attn_k.weight", "v_proj", "attn_v", "blk.1.ffn_down.weight")
    assert names(spec_of(tmp_path), *given) == [
        "blk.0.attn_v.weight",
        "blk.0.ffn_down.weight",
        "blk.1.attn_k.weight",
        "blk.1.attn_v.weight",
        "blk.1.ffn_down.weight",
        "blk.2.attn_v.weight",
        "blk.2.ffn_down.weight",
    ]


@pytest.mark.parametrize("given", ["output", "lm_head", "output.weight"])
def test_the_output_layer_is_a_target_where_it_is_one_of_its_own(tmp_path: Path, given: str) -> None:
    assert names(spec_of(tmp_path, tied=False), given) == ["output.weight"]
    with pytest.raises(
        ModelError, match=f"--target {given}: llama.cpp rejects an adapter .*embedding is also its output"
    ):
        names(spec_of(tmp_path), given)


@pytest.mark.parametrize("given", ["token_embd", "embed_tokens", "token_embd.weight"])
def test_the_embedding_is_refused_with_what_would_happen(tmp_path: Path, given: str) -> None:
    with pytest.raises(ModelError, match=f"--target {given}: llama.cpp aborts on an adapter .*also its output layer"):
        names(spec_of(tmp_path), given)
    with pytest.raises(ModelError, match=f"--target {given}: pairs on the embedding are not supported yet"):
        names(spec_of(tmp_path, tied=False), given)


@pytest.mark.parametrize(
    ("architecture", "given"),
    [
        ("llama", "attn_norm"),
        ("llama", "blk.1.ffn_norm.weight"),
        ("llama", "output_norm"),
        ("qwen3", "attn_q_norm"),
        ("qwen3", "blk.0.attn_k_norm.weight"),
        ("qwen2", "blk.0.attn_q.bias"),
        ("gemma3", "post_attention_norm"),
        ("gemma3", "post_ffw_norm"),
    ],
)
def test_what_llama_cpp_ignores_is_refused(tmp_path: Path, architecture: str, given: str) -> None:
    with pytest.raises(ModelError, match=f"--target {given}: llama.cpp loads an adapter for it but never applies it"):
        names(spec_of(tmp_path, architecture), given)


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        ("ignored", "never applies it"),
        ("rejected", "rejects an adapter for it."),
        ("aborts", "aborts on an adapter for it."),
        (None, "was never tried"),
    ],
)
def test_a_linear_layer_that_llama_cpp_does_not_adapt_is_no_target(
    tmp_path: Path, effect: Effect | None, said: str
) -> None:
    """As of DeepSeek's attn_q. It is refused by name, and all-linear is the others; so is one that nobody tried."""
    spec = spec_of(tmp_path)
    pairs = {stem: value for stem, value in spec.pairs.items() if stem != "attn_q"}
    if effect:
        pairs["attn_q"] = effect
    limited = replace(spec, pairs=pairs)
    for given in ("attn_q", "q_proj", "blk.2.attn_q.weight"):
        with pytest.raises(ModelError, match=said):
            names(limited, "attn_v", given)
    assert names(limited, "all-linear") == [name for name in names(spec, "all-linear") if "attn_q" not in name]


def test_a_norm_that_the_model_has_not_is_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--target post_ffw_norm names no tensor of this model"):
        names(spec_of(tmp_path), "post_ffw_norm")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("atn_q", "did you mean attn_q?"),
        ("ffn_dwon", "did you mean ffn_down?"),
        ("all_linear", "did you mean all-linear?"),
        ("qproj", "did you mean q_proj?"),
        ("nose", "possible here: all-linear, attn_k, attn_output, attn_q, attn_v, ffn_down, ffn_gate, ffn_up."),
        ("blk.7.nose.weight", "possible here"),
        ("", "possible here"),
    ],
)
def test_an_unknown_name_is_answered_with_a_known_one(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        names(spec_of(tmp_path), "attn_q", given)
    assert f"--target {given} names no tensor" in str(caught.value)
    assert said in str(caught.value)


def test_a_rank_larger_than_a_matrix_is_refused_with_the_largest_possible(tmp_path: Path) -> None:
    """Keys are 20 x 48 in this model; the output of the message is the rank to use."""
    spec = spec_of(tmp_path)
    assert len(resolve_targets(spec, ("all-linear",), rank=20)) == 21
    with pytest.raises(
        UsageError, match=r"--rank 21 is larger than blk\.0\.attn_k\.weight, which is 20 x 48: use 20 or"
    ):
        resolve_targets(spec, ("all-linear",), rank=21)
    assert len(resolve_targets(spec, ("attn_q",), rank=48)) == 3
