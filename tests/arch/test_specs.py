"""A file resolves to the numbers and names of every layer, or is refused with the tensor or key that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.arch import AttentionSpec, FfnSpec, LayerSpec, LinearSpec, ModelSpec, RopeSpec, model_spec
from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile, ValueType, open_gguf
from tests.rewritten import rewritten
from tests.tiny import OWN, QKV, tiny_model

STEMS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

Maker = Callable[..., GgufFile]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return lambda architecture, **numbers: open_gguf(
        tiny_model(tmp_path / "t.gguf", architecture=architecture, **numbers)
    )


# --- what a right file resolves to, written by hand ---


def linear(name: str, out: int, columns: int, biased: bool = False) -> LinearSpec:
    return LinearSpec(f"{name}.weight", (out, columns), f"{name}.bias" if biased else None)


def attention(blk: str, rope: RopeSpec, **numbers: Any) -> AttentionSpec:
    """Six query heads of 10 and two key heads, at width 48, unless `numbers` say something else."""
    h, biased = numbers.pop("head_dim", 10), numbers.pop("biased", False)
    given: dict[str, Any] = {"scale": h**-0.5, "window": None, "attn_q_norm": None, "attn_k_norm": None} | numbers
    return AttentionSpec(
        heads=6,
        kv_heads=2,
        head_dim=h,
        rope=rope,
        attn_q=linear(blk + "attn_q", 6 * h, 48, biased),
        attn_k=linear(blk + "attn_k", 2 * h, 48, biased),
        attn_v=linear(blk + "attn_v", 2 * h, 48, biased),
        attn_output=linear(blk + "attn_output", 48, 6 * h),
        **given,
    )


def feed_forward(blk: str, activation: Any) -> FfnSpec:
    return FfnSpec(
        activation,
        linear(blk + "ffn_gate", 88, 48),
        linear(blk + "ffn_up", 88, 48),
        linear(blk + "ffn_down", 48, 88),
    )


def plain_layer(blk: str, mixer: AttentionSpec) -> LayerSpec:
    return LayerSpec(
        attn_norm=blk + "attn_norm.weight",
        mixer=mixer,
        post_attention_norm=None,
        ffn_norm=blk + "ffn_norm.weight",
        ffn=feed_forward(blk, "silu"),
        post_ffw_norm=None,
    )


def gemma_layer(blk: str, windowed: bool) -> LayerSpec:
    base, scale = (90.0, 1.0) if windowed else (500.0, 0.4)
    return LayerSpec(
        attn_norm=blk + "attn_norm.weight",
        mixer=attention(
            blk,
            RopeSpec("half_split", 10, base, scale, None),
            window=21 if windowed else None,
            attn_q_norm=blk + "attn_q_norm.weight",
            attn_k_norm=blk + "attn_k_norm.weight",
        ),
        post_attention_norm=blk + "post_attention_norm.weight",
        ffn_norm=blk + "ffn_norm.weight",
        ffn=feed_forward(blk, "gelu_tanh"),
        post_ffw_norm=blk + "post_ffw_norm.weight",
    )


def test_llama(make: Maker) -> None:
    rope = RopeSpec("consecutive", 10, 500.0, 0.4, "rope_freqs.weight")
    spec = model_spec(make("llama", rope_freqs=True, rope_factor=2.5))
    assert spec.layers == tuple(plain_layer(f"blk.{i}.", attention(f"blk.{i}.", rope)) for i in range(3))


def test_qwen2(make: Maker) -> None:
    rope = RopeSpec("half_split", 8, 500.0, 1.0, None)
    spec = model_spec(make("qwen2"))
    assert spec.layers == tuple(
        plain_layer(f"blk.{i}.", attention(f"blk.{i}.", rope, head_dim=8, biased=True)) for i in range(3)
    )


def test_qwen3(make: Maker) -> None:
    rope = RopeSpec("half_split", 10, 500.0, 1.0, None)
    spec = model_spec(make("qwen3"))
    norms = [{f"attn_{half}_norm": f"blk.{i}.attn_{half}_norm.weight" for half in "qk"} for i in range(3)]
    assert spec.layers == tuple(plain_layer(f"blk.{i}.", attention(f"blk.{i}.", rope, **norms[i])) for i in range(3))


def test_gemma3(make: Maker) -> None:
    spec = model_spec(make("gemma3", rope_factor=2.5))
    assert spec.layers == tuple(gemma_layer(f"blk.{i}.", windowed=i < 2) for i in range(3))


@pytest.mark.parametrize(
    ("architecture", "scale", "softcap"), [("llama", 1.0, None), ("qwen3", 1.0, None), ("gemma3", 48**0.5, 6.0)]
)
def test_the_model_around_the_layers(make: Maker, architecture: str, scale: float, softcap: float | None) -> None:
    spec = model_spec(make(architecture, softcap=softcap or 0.0, epsilon=0.25))
    found = {field.name: getattr(spec, field.name) for field in fields(ModelSpec)}
    del found["layers"], found["pairs"]
    assert found == {
        "architecture": architecture,
        "width": 48,
        "vocabulary": 300,
        "context_length": 256,
        "epsilon": 0.25,
        "embedding_scale": scale,
        "softcap": softcap,
        "token_embd": "token_embd.weight",
        "output_norm": "output_norm.weight",
        "output": LinearSpec("token_embd.weight", (300, 48), None),
        "tied": True,
    }


@pytest.mark.parametrize("architecture", OWN)
def test_an_output_layer_of_its_own_is_one_linear_layer_more(make: Maker, architecture: str) -> None:
    tied, untied = model_spec(make(architecture)), model_spec(make(architecture, tied=False))
    assert [spec.name for spec in untied.linears()] == [*(spec.name for spec in tied.linears()), "output.weight"]
    assert untied.output == LinearSpec("output.weight", (300, 48), None)
    assert [spec.stem for spec in tied.linears()] == [*STEMS] * 3


@pytest.mark.parametrize(("layers", "scale"), [(62, 6**-0.5), (61, 10**-0.5)])
def test_62_layers_of_gemma3_are_scaled_by_width_per_head(make: Maker, layers: int, scale: float) -> None:
    """src/models/gemma3.cpp:33: the 27B, told by its depth; width 36 over 6 heads, heads of 10."""
    spec = model_spec(make("gemma3", layers=layers, width=36))
    assert {layer.mixer.scale for layer in spec.layers} == {scale}


@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [
        (None, [0, 1, 2, 3, 4, 6]),  # the default of this row: all but the last of every 6
        (3, [0, 1, 3, 4, 6]),
        (2, [0, 2, 4, 6]),
        (0, [0, 1, 2, 3, 4, 5, 6]),
        ((False, True, False, False, True, True, False), [1, 4, 5]),
    ],
)
def test_which_layers_have_a_window(make: Maker, pattern: Any, windowed: list[int]) -> None:
    """And with it a rope base of their own, without scaling."""
    spec = model_spec(make("gemma3", layers=7, window_pattern=pattern, rope_factor=2.5))
    assert [i for i, layer in enumerate(spec.layers) if layer.mixer.window == 21] == windowed
    for index, layer in enumerate(spec.layers):
        rope = layer.mixer.rope
        assert (rope.base, rope.scale) == ((90.0, 1.0) if index in windowed else (500.0, 0.4))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_window_means_nothing_to_rows_without_one(make: Maker, architecture: str) -> None:
    """llama.cpp does not read the key there (Mistral 7B's old files have it)."""
    assert model_spec(make(architecture, window=21)) == model_spec(make(architecture))


# --- files that are refused ---


def test_an_unknown_architecture_is_named_with_the_known_ones(make: Maker, tmp_path: Path) -> None:
    other = rewritten(make("llama"), tmp_path / "o.gguf", keys={"general.architecture": (ValueType.STRING, "mamba")})
    with pytest.raises(ModelError, match=r"o\.gguf: architecture 'mamba' is not supported; supported: gemma3, llama,"):
        model_spec(other)
    nameless = rewritten(make("llama"), tmp_path / "n.gguf", keys={"general.architecture": None})
    with pytest.raises(ModelError, match="does not say its architecture"):
        model_spec(nameless)


def required(architecture: str) -> list[str]:
    norms = {"qwen3": ["attn_q_norm", "attn_k_norm"]}
    norms["gemma3"] = [*norms["qwen3"], "post_attention_norm", "post_ffw_norm"]
    stems = [*STEMS, "attn_norm", "ffn_norm", *norms.get(architecture, [])]
    return ["token_embd.weight", "output_norm.weight", *(f"blk.1.{stem}.weight" for stem in stems)]


NEEDED = [(architecture, name) for architecture in OWN for name in required(architecture)]


@pytest.mark.parametrize(("architecture", "name"), NEEDED)
def test_a_tensor_that_is_missing_is_named(make: Maker, tmp_path: Path, architecture: str, name: str) -> None:
    file = rewritten(make(architecture), tmp_path / "less.gguf", tensors={name: None})
    with pytest.raises(FileError, match=re.escape(f"less.gguf: tensor {name} is missing.")):
        model_spec(file)


@pytest.mark.parametrize("architecture", OWN)
def test_queries_keys_and_values_in_one_tensor_are_refused_by_its_name(
    make: Maker, tmp_path: Path, architecture: str
) -> None:
    """As llama.cpp's converter fuses them on request: attn_q is not missing, it is somewhere else."""
    tensors: dict[str, Any] = {f"blk.1.attn_{each}.weight": None for each in "qkv"}
    fused = tensors | {"blk.1.attn_qkv.weight": np.ones((100, 48))}
    file = rewritten(make(architecture), tmp_path / "fused.gguf", tensors=fused)
    with pytest.raises(
        ModelError, match=r"fused\.gguf: tensor blk\.1\.attn_qkv\.weight holds queries, keys and values"
    ):
        model_spec(file)


@pytest.mark.parametrize(("architecture", "name"), NEEDED)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    make: Maker, tmp_path: Path, architecture: str, name: str
) -> None:
    right = make(architecture)
    *rows, columns = right.tensors[name].shape
    file = rewritten(right, tmp_path / "wrong.gguf", tensors={name: np.ones((*rows, columns + 1))})
    shape, needed = (*rows, columns + 1), (*rows, columns)
    with pytest.raises(FileError, match=re.escape(f"tensor {name} has shape {shape}, its model needs {needed}.")):
        model_spec(file)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.1.attn_q.bias", (61,)),
        ("output.weight", (299, 48)),
        ("rope_freqs.weight", (6,)),
    ],
)
def test_an_optional_tensor_has_its_shape_too(make: Maker, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    file = rewritten(make("llama"), tmp_path / "wrong.gguf", tensors={name: np.ones(shape)})
    with pytest.raises(FileError, match=re.escape(f"tensor {name} has shape {shape}")):
        model_spec(file)


@pytest.mark.parametrize(
    ("architecture", "name", "hint"),
    [
        ("llama", "blk.1.attn_q_norm.weight", "blk.1.attn_norm.weight"),
        ("llama", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate.weight"),
        ("llama", "blk.3.attn_q.weight", "blk.2.attn_q.weight"),
        ("llama", "output.bias", None),
        ("qwen2", "rope_freqs.weight", None),
        ("qwen2", "blk.2.attn_output.bias", "blk.2.attn_output.weight"),
        ("qwen2", "output.bias", None),
        ("qwen3", "blk.1.post_ffw_norm.weight", "blk.1.ffn_norm.weight"),
        ("gemma3", "blk.1.ffn_up.bias", "blk.1.ffn_up.weight"),
        ("gemma3", "dense_2.weight", None),
    ],
)
def test_a_tensor_that_nothing_asks_for_is_refused_by_name(
    make: Maker, tmp_path: Path, architecture: str, name: str, hint: str | None
) -> None:
    """It belongs to a graph that would be computed wrongly."""
    file = rewritten(make(architecture), tmp_path / "more.gguf", tensors={name: np.ones(48)})
    with pytest.raises(
        ModelError, match=re.escape(f"tensor {name} is not part of the {architecture} models")
    ) as caught:
        model_spec(file)
    if hint:
        assert hint in str(caught.value)


@pytest.mark.parametrize("key", ["attention.key_length", "attention.value_length", "rope.dimension_count"])
def test_heads_whose_sizes_differ_are_refused_as_llama_cpp_refuses_them(make: Maker, tmp_path: Path, key: str) -> None:
    file = rewritten(make("llama"), tmp_path / "h.gguf", keys={f"llama.{key}": (ValueType.UINT32, 8)})
    with pytest.raises(FileError, match=r"llama\.cpp needs the three equal"):
        model_spec(file)


# --- biases ---


@pytest.mark.parametrize("architecture", OWN)
def test_each_bias_is_that_of_its_own_layer(make: Maker, architecture: str) -> None:
    spec = model_spec(make(architecture, biases=QKV))
    for linear in spec.linears():
        assert linear.bias == (linear.name.replace(".weight", ".bias") if linear.stem in QKV else None)


# --- what a pair does ---


def test_what_is_said_of_pairs_is_said_of_the_files_own_tensors(make: Maker) -> None:
    tied, untied = model_spec(make("llama")), model_spec(make("qwen3", tied=False))
    assert set(tied.pairs) == {*STEMS, "token_embd", "output", "attn_norm", "ffn_norm", "output_norm"}
    assert (tied.pairs["output"], tied.pairs["token_embd"]) == ("rejected", "aborts")
    assert (untied.pairs["output"], untied.pairs["token_embd"]) == ("acts", "acts")
    assert untied.pairs["attn_q_norm"] == "ignored"
