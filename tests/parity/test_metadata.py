"""A key that a file may leave out, or write in another form, means here what it means in llama.cpp."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguflora.arch import model_spec
from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile, ValueType, open_gguf
from gguflora.llamacpp import LlamaModel
from tests.numerics import EXACT, GELU_TABLE, Floats, assert_same_graph, finite, logit_gap
from tests.parity import plants
from tests.parity.cases import SEED, TOKENS, loaded, ours
from tests.rewritten import rewritten
from tests.tiny import OWN, tiny_model

WHOLE, REAL, TEXT, FLAG = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING, ValueType.BOOL


def theirs(gguf: GgufFile) -> Floats:
    with LlamaModel(gguf.path, exact=True, threads=1) as llama:
        return finite(llama.logits(TOKENS))


def with_keys(gguf: GgufFile, keys: dict[str, Any]) -> GgufFile:
    named = {f"{gguf.architecture}.{key}": value for key, value in keys.items()}
    return rewritten(gguf, gguf.path.with_name("changed.gguf"), keys=named)


LEFT_OUT: dict[str, dict[str, Any]] = {
    "attention.head_count_kv": {"kv_heads": 6},
    "rope.dimension_count": {},
    "rope.freq_base": {},
}


@pytest.mark.parametrize("key", LEFT_OUT)
@pytest.mark.parametrize("architecture", OWN)
def test_a_key_left_out_has_llama_cpps_default(tmp_path: Path, architecture: str, key: str) -> None:
    whole = open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture, **LEFT_OUT[key]))
    file = with_keys(whole, {key: None})
    bounds = GELU_TABLE if architecture == "gemma3" else EXACT
    print(assert_same_graph(theirs(file), ours(loaded(file)), SEED, bounds))


@pytest.mark.parametrize("architecture", OWN)
def test_one_number_for_each_layer_is_that_number(tmp_path: Path, architecture: str) -> None:
    whole = open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture))
    arrays = {"attention.head_count": 6, "attention.head_count_kv": 2, "feed_forward_length": 88}
    file = with_keys(whole, {key: (WHOLE, [value] * 3) for key, value in arrays.items()})
    bounds = GELU_TABLE if architecture == "gemma3" else EXACT
    print(assert_same_graph(theirs(file), ours(loaded(file)), SEED, bounds))


@pytest.mark.parametrize(
    "pattern",
    [(WHOLE, [0, 1, 0]), (FLAG, [False, True, True]), (FLAG, [True, False, True, True]), (WHOLE, 0), (WHOLE, 2)],
    ids=str,
)
def test_every_form_of_a_window_pattern_is_llama_cpps(tmp_path: Path, pattern: Any) -> None:
    whole = open_gguf(tiny_model(tmp_path / "t.gguf", architecture="gemma3"))
    file = with_keys(whole, {"attention.sliding_window_pattern": pattern})
    expected = theirs(file)
    print(assert_same_graph(expected, ours(loaded(file)), SEED, GELU_TABLE))
    shifted = plants.windows(lambda index, _window: model_spec(file).layers[index - 1].mixer.window)(model_spec(file))
    if shifted != model_spec(file):
        assert GELU_TABLE.times(logit_gap(expected, ours(loaded(file, shifted)))) > 100


@pytest.mark.parametrize("pattern", [(FLAG, [False, False, False]), (WHOLE, 1)], ids=str)
def test_a_window_that_no_layer_has_is_refused_since_llama_cpp_ends_the_process(tmp_path: Path, pattern: Any) -> None:
    whole = open_gguf(tiny_model(tmp_path / "t.gguf", architecture="gemma3"))
    file = with_keys(whole, {"attention.sliding_window_pattern": pattern})
    with pytest.raises(FileError, match="names a sliding window but no layer that has it"):
        model_spec(file)
    code = "import sys; from gguflora.llamacpp import LlamaModel; LlamaModel(sys.argv[1], exact=True).logits([1, 2])"
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    run = [sys.executable, "-c", code, str(file.path)]
    assert subprocess.run(run, env=environment, capture_output=True, check=False).returncode == -signal.SIGABRT


@pytest.mark.parametrize("window", [1, 2, 95, 96])
def test_windows_end_where_llama_cpps_end(tmp_path: Path, window: int) -> None:
    """From one position, itself, to as many as there are."""
    file = open_gguf(tiny_model(tmp_path / "t.gguf", architecture="gemma3", window=window, window_pattern=0))
    print(assert_same_graph(theirs(file), ours(loaded(file)), SEED, GELU_TABLE))


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "rope.scaling.attn_factor", (REAL, 1.25)),
        ("qwen3", "rope.scaling.attn_factor", (REAL, 1.25)),
        ("qwen2", "attention.causal", (FLAG, False)),
    ],
)
def test_what_is_refused_would_have_been_another_graph(tmp_path: Path, architecture: str, key: str, value: Any) -> None:
    """llama.cpp reads the key in this architecture too, and computes something else."""
    plain = open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture))
    file = with_keys(plain, {key: value})
    with pytest.raises(ModelError):
        model_spec(file)
    assert EXACT.times(logit_gap(theirs(file), ours(loaded(plain)))) > 100


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_heads_of_values_have_llama_cpps_default_too(tmp_path: Path, architecture: str) -> None:
    """It is width / heads, not the keys' length: without the key neither program takes the file."""
    file = with_keys(
        open_gguf(tiny_model(tmp_path / "t.gguf", architecture=architecture)), {"attention.value_length": None}
    )
    with pytest.raises(FileError, match="needs the three equal"):
        model_spec(file)
    with pytest.raises(FileError, match=r"llama\.cpp can't load"):
        LlamaModel(file.path, exact=True)
