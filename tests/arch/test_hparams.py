"""The numbers of a model are those that its metadata states; what is missing, impossible or unsupported is refused."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gguflora.arch.hparams import read_hparams
from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile, ValueType, open_gguf
from tests.rewritten import rewritten
from tests.tiny import OWN, tiny_model

WHOLE, REAL, TEXT, FLAG = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING, ValueType.BOOL


@pytest.fixture
def gemma(tmp_path: Path) -> GgufFile:
    """The row with the most numbers."""
    return open_gguf(tiny_model(tmp_path / "t.gguf", architecture="gemma3", rope_factor=2.5, softcap=6.0))


def changed(gguf: GgufFile, key: str, kind: ValueType | None, value: Any = None) -> GgufFile:
    """The file with another value of a key, or without it."""
    keys = {f"{gguf.architecture}.{key}": None if kind is None else (kind, value)}
    return rewritten(gguf, gguf.path.with_name("changed.gguf"), keys=keys)


def test_every_number_is_the_files(gemma: GgufFile) -> None:
    """Against the numbers that tests/tiny.py writes, each of another value; float32 rounds 0.048 in the file."""
    assert asdict(read_hparams(gemma)) == {
        "block_count": 3,
        "context_length": 256,
        "embedding_length": 48,
        "feed_forward_length": 88,
        "head_count": 6,
        "head_count_kv": 2,
        "key_length": 10,
        "value_length": 10,
        "layer_norm_rms_epsilon": pytest.approx(0.048, rel=1e-7),
        "rope_dimension_count": 10,
        "rope_freq_base": 500.0,
        "rope_freq_scale": 0.4,
        "sliding_window": 21,
        "sliding_window_pattern": 3,
        "rope_freq_base_swa": 90.0,
        "final_logit_softcapping": 6.0,
    }


@pytest.mark.parametrize("architecture", OWN)
@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_key_without_a_default_is_required(tmp_path: Path, architecture: str, key: str) -> None:
    gguf = open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture))
    with pytest.raises(FileError, match=re.escape(f"changed.gguf: the metadata key {architecture}.{key} is missing.")):
        read_hparams(changed(gguf, key, None))


@pytest.mark.parametrize(
    ("key", "kind", "value", "said"),
    [
        ("block_count", WHOLE, 0, "0, not a whole number from 1 to 1024"),
        ("block_count", WHOLE, 2**31, "2147483648, not a whole number"),
        ("embedding_length", ValueType.INT32, -48, "-48, not a whole number"),
        ("context_length", TEXT, "long", "'long', not a whole number"),
        ("context_length", FLAG, True, "True, not a whole number"),
        ("attention.head_count_kv", WHOLE, 4, "4, which does not divide 6 heads"),
        ("attention.layer_norm_rms_epsilon", REAL, 0.0, "0.0, not a number above 0"),
        ("attention.layer_norm_rms_epsilon", REAL, float("nan"), "nan, not a number above 0"),
        ("rope.freq_base", REAL, float("inf"), "inf, not a number above 0"),
        ("rope.freq_base", REAL, -1.0, "-1.0, not a number above 0"),
        ("final_logit_softcapping", REAL, -30.0, "-30.0, not a number above 0"),
        ("attention.sliding_window_pattern", TEXT, "every other", "'every other', not one flag a layer"),
        ("attention.sliding_window_pattern", FLAG, [True, False], "[True, False], not one flag a layer"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(
    gemma: GgufFile, key: str, kind: ValueType, value: Any, said: str
) -> None:
    with pytest.raises(FileError, match=re.escape(f"gemma3.{key} is {said}")):
        read_hparams(changed(gemma, key, kind, value))


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ((FLAG, [True, False, True]), (True, False, True)),
        ((WHOLE, [1, 0, 0]), (True, False, False)),
        ((FLAG, [False, False, True, True]), (False, False, True, True)),  # llama.cpp takes longer arrays too
        ((WHOLE, 2), 2),
        ((WHOLE, 0), 0),
        (None, None),
    ],
)
def test_a_window_pattern_is_a_flag_a_layer_or_a_number(gemma: GgufFile, value: Any, pattern: Any) -> None:
    kind, given = value or (None, None)
    file = changed(gemma, "attention.sliding_window_pattern", kind, given)
    assert read_hparams(file).sliding_window_pattern == pattern


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_an_array_of_one_value_is_that_value_and_of_several_is_refused(gemma: GgufFile, key: str) -> None:
    before = read_hparams(gemma)
    value = gemma.metadata[f"gemma3.{key}"]
    assert read_hparams(changed(gemma, key, WHOLE, [value] * 3)) == before
    with pytest.raises(ModelError, match=re.escape(f"gemma3.{key} differs between layers")):
        read_hparams(changed(gemma, key, WHOLE, [value, value, 2 * value]))


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"rope.scaling.factor": (REAL, 4.0)}, 0.25),
        ({"rope.scaling.factor": (REAL, 4.0), "rope.scaling.type": (TEXT, "linear")}, 0.25),
        ({"rope.scaling.factor": (REAL, 4.0), "rope.scaling.type": (TEXT, "none")}, 1.0),
        ({"rope.scaling.factor": (REAL, 0.0)}, 1.0),
        ({"rope.scale_linear": (REAL, 8.0)}, 0.125),
        ({"rope.scaling.factor": (REAL, 4.0), "rope.scale_linear": (REAL, 8.0)}, 0.25),
        ({}, 1.0),
    ],
)
def test_linear_rope_scaling_is_read_as_llama_cpp_reads_it(tmp_path: Path, keys: dict[str, Any], scale: float) -> None:
    """src/llama-model.cpp:1415-1429: linear is the default type, and there is an older name of the factor."""
    gguf = open_gguf(tiny_model(tmp_path / "t.gguf", architecture="llama"))
    file = rewritten(gguf, tmp_path / "scaled.gguf", keys={f"llama.{key}": value for key, value in keys.items()})
    assert read_hparams(file).rope_freq_scale == scale


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("rope.scaling.type", TEXT, "yarn"),
        ("rope.scaling.type", TEXT, "longrope"),
        ("rope.scaling.attn_factor", REAL, 1.25),
        ("attention.causal", FLAG, False),
        ("expert_count", WHOLE, 4),
        ("nextn_predict_layers", WHOLE, 1),
        ("attention.key_length_swa", WHOLE, 8),
        ("attention.value_length_swa", WHOLE, 8),
        ("rope.dimension_count_swa", WHOLE, 8),
    ],
)
def test_what_would_be_another_graph_is_refused(gemma: GgufFile, key: str, kind: ValueType, value: Any) -> None:
    with pytest.raises(ModelError, match="not supported yet") as caught:
        read_hparams(changed(gemma, key, kind, value))
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("rope.scaling.attn_factor", REAL, 1.0),
        ("attention.causal", FLAG, True),
        ("expert_count", WHOLE, 0),
        ("nextn_predict_layers", WHOLE, 0),
        ("attention.key_length_swa", WHOLE, 10),
        ("rope.dimension_count_swa", WHOLE, 10),
    ],
)
def test_the_same_keys_are_harmless_where_they_change_nothing(
    gemma: GgufFile, key: str, kind: ValueType, value: Any
) -> None:
    assert read_hparams(changed(gemma, key, kind, value)) == read_hparams(gemma)
