"""Adapters: what is written reads back exactly, and what would do harm is refused before llama.cpp sees it."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gguflora.errors import FileError
from gguflora.gguf import (
    Adapter,
    ChatSetting,
    GgmlType,
    Identity,
    Pair,
    Tensor,
    ValueType,
    check_fits,
    f32,
    open_gguf,
    read_adapter,
    write_adapter,
    write_gguf,
)

Q = "blk.0.attn_q.weight"
UP = "blk.0.ffn_up.weight"
BASE = Identity("a" * 64, "b" * 64, "c" * 64)
OTHER = Identity("d" * 64, "b" * 64, "c" * 64)


def some_pair(rank: int = 2, out: int = 6, columns: int = 4) -> Pair:
    rng = np.random.default_rng(rank)
    return Pair(rng.normal(size=(rank, columns)).astype(np.float32), rng.normal(size=(out, rank)).astype(np.float32))


def some_adapter(**changes) -> Adapter:
    return dataclasses.replace(Adapter("llama", 5.0, {Q: some_pair(2), UP: some_pair(3, 7, 4)}, BASE), **changes)


def write_file(path, *, tensors=None, **changes):
    """An adapter file by the plain writer, with metadata changed (None leaves a key out)."""
    metadata = {
        "general.type": (ValueType.STRING, "adapter"),
        "general.architecture": (ValueType.STRING, "llama"),
        "adapter.type": (ValueType.STRING, "lora"),
        "adapter.lora.alpha": (ValueType.FLOAT32, 5.0),
    } | {key.replace("__", "."): value for key, value in changes.items()}
    if tensors is None:
        tensors = [f32(Q + ".lora_a", np.ones((2, 4))), f32(Q + ".lora_b", np.ones((6, 2)))]
    write_gguf(path, {key: value for key, value in metadata.items() if value}, tensors)
    return path


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.gguf"
    write_gguf(
        path,
        {"general.architecture": (ValueType.STRING, "llama")},
        [f32(Q, np.zeros((6, 4))), f32(UP, np.zeros((7, 4))), f32("blk.0.attn_norm.weight", np.zeros(4))],
    )
    return open_gguf(path)


def refusal(call, *arguments) -> str:
    with pytest.raises(FileError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.endswith(".")
    assert message.isprintable()
    assert ". " not in message
    return message


# --- round trip ---


def finite(shape):
    return arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@st.composite
def pairs(draw):
    rank, out, columns = (draw(st.integers(1, 4)) for _ in range(3))
    return Pair(draw(finite((rank, columns))), draw(finite((out, rank))))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    written=st.dictionaries(st.sampled_from([Q, UP, "output.weight", "blk.1.attn_k.weight"]), pairs(), min_size=1),
    alpha=st.floats(2.0**-126, 2.0**127, width=32),
    identity=st.sampled_from([None, BASE]),
    chat=st.sampled_from([ChatSetting(), ChatSetting('{"enable_thinking": false}'), ChatSetting("{}", "ab" * 32)]),
)
def test_an_adapter_reads_back_exactly(tmp_path_factory, written, alpha, identity, chat):
    path = tmp_path_factory.getbasetemp() / "adapter.gguf"
    write_adapter(path, Adapter("llama", alpha, written, identity, chat))
    read = read_adapter(path)
    assert (read.architecture, read.alpha, read.base, read.chat) == ("llama", alpha, identity, chat)
    assert list(read.pairs) == list(written)
    for name, pair in written.items():
        assert read.pairs[name].lora_a.tobytes() == pair.lora_a.tobytes()
        assert read.pairs[name].lora_b.tobytes() == pair.lora_b.tobytes()
        assert read.pairs[name].lora_b.shape == pair.lora_b.shape
        assert read.pairs[name].rank == pair.lora_a.shape[0]


def test_the_file_has_the_keys_types_and_shapes_that_llama_cpp_asks_for(tmp_path):
    write_adapter(tmp_path / "a.gguf", some_adapter())
    file = GGUFReader(tmp_path / "a.gguf")
    fields = {key: (f.types[0].name, f.contents()) for key, f in file.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": ("STRING", "adapter"),
        "general.architecture": ("STRING", "llama"),
        "adapter.type": ("STRING", "lora"),
        "adapter.lora.alpha": ("FLOAT32", 5.0),
        "gguflora.base.sha256": ("STRING", "a" * 64),
        "gguflora.base.tokenizer.sha256": ("STRING", "b" * 64),
        "gguflora.base.template.sha256": ("STRING", "c" * 64),
    }
    assert {t.name: (t.tensor_type.name, t.shape.tolist()) for t in file.tensors} == {
        Q + ".lora_a": ("F32", [4, 2]),
        Q + ".lora_b": ("F32", [2, 6]),
        UP + ".lora_a": ("F32", [4, 3]),
        UP + ".lora_b": ("F32", [3, 7]),
    }


def test_the_same_adapter_is_the_same_bytes_wherever_and_whenever_it_is_written(tmp_path, monkeypatch):
    first, second = tmp_path / "run1" / "a.gguf", tmp_path / "another place" / "b.gguf"
    for path in (first, second):
        path.parent.mkdir()
    write_adapter(first, some_adapter())
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("os.getpid", lambda: 123456)
    write_adapter(second, some_adapter())
    assert first.read_bytes() == second.read_bytes()
    for word in (b"run1", b"tmp", b"2026", str(tmp_path).encode()):
        assert word not in first.read_bytes()


def test_half_precision_pairs_of_other_programs_are_read(tmp_path):
    values = np.array([[1.5, -2.0, 0.25, 65504.0]], np.float32)  # exact in both; 65504 is float16's largest
    bf16 = (np.array([[1.5], [-2.0], [2.0**100]], np.float32).view(np.uint32) >> 16).astype("<u2")
    tensors = [
        Tensor(Q + ".lora_a", GgmlType.F16, (1, 4), values.astype("<f2")),
        Tensor(Q + ".lora_b", GgmlType.BF16, (3, 1), bf16),
    ]
    pair = read_adapter(write_file(tmp_path / "a.gguf", tensors=tensors)).pairs[Q]
    assert pair.lora_a.tolist() == values.tolist()
    assert pair.lora_b.tolist() == [[1.5], [-2.0], [2.0**100]]
    assert pair.lora_a.dtype == pair.lora_b.dtype == np.float32


def test_an_adapter_of_another_program_has_no_base_and_fits_by_shape(tmp_path, base):
    adapter = read_adapter(write_file(tmp_path / "a.gguf"))
    assert adapter.base is None
    check_fits(tmp_path / "a.gguf", adapter, base, BASE)


# --- files that are no valid adapter ---

A, B = f32(Q + ".lora_a", np.ones((2, 4))), f32(Q + ".lora_b", np.ones((6, 2)))
NOT_A_NUMBER = f32(Q + ".lora_b", np.full((6, 2), np.nan))
QUANTISED = Tensor(Q + ".lora_a", GgmlType.Q8_0, (2, 32), np.zeros(68, np.uint8))
EXPERTS = [f32("e.weight.lora_a", np.ones((3, 2, 4))), f32("e.weight.lora_b", np.ones((3, 6, 2)))]
F64_ALPHA, U32_ALPHA, ONE_HASH = (ValueType.FLOAT64, 5.0), (ValueType.UINT32, 5), (ValueType.STRING, "a" * 64)

INVALID = {
    "a base": ({"general__type": None}, "not a LoRA adapter"),
    "general.type is a list": ({"general__type": (ValueType.STRING, ["adapter"])}, "not a LoRA adapter"),
    "another kind of adapter": ({"adapter__type": (ValueType.STRING, "control_vector")}, "not a LoRA adapter"),
    "activated LoRA": ({"adapter__alora__invocation_tokens": (ValueType.UINT32, [1])}, "activated LoRA"),
    "no alpha": ({"adapter__lora__alpha": None}, "adapter.lora.alpha"),
    "alpha as UINT32, on which llama.cpp aborts": ({"adapter__lora__alpha": U32_ALPHA}, "not a FLOAT32"),
    "alpha as FLOAT64, on which llama.cpp aborts": ({"adapter__lora__alpha": F64_ALPHA}, "not a FLOAT32"),
    "alpha as a list": ({"adapter__lora__alpha": (ValueType.FLOAT32, [5.0])}, "not a FLOAT32"),
    "alpha 0, which llama.cpp takes for 'no scale'": (
        {"adapter__lora__alpha": (ValueType.FLOAT32, 0.0)},
        "alpha is 0.0",
    ),
    "alpha negative": ({"adapter__lora__alpha": (ValueType.FLOAT32, -1.0)}, "alpha is -1.0"),
    "alpha NaN": ({"adapter__lora__alpha": (ValueType.FLOAT32, float("nan"))}, "alpha is nan"),
    "alpha infinite": ({"adapter__lora__alpha": (ValueType.FLOAT32, float("inf"))}, "alpha is inf"),
    "one hash of three": ({"gguflora__base__sha256": ONE_HASH}, "tokenizer.sha256 is missing"),
    "template options that are no JSON": (
        {"gguflora__template__options": (ValueType.STRING, "{enable_thinking: false}")},
        "options is not a JSON object",
    ),
    "template options that are a list": (
        {"gguflora__template__options": (ValueType.STRING, "[" * 99_999)},
        "options is not a JSON object",
    ),
    "a template's hash that is none": ({"gguflora__template__sha256": (ValueType.STRING, "ab")}, "not a SHA-256"),
    "a hash with escape codes": ({"gguflora__base__sha256": (ValueType.STRING, "\x1b[2J")}, "not a SHA-256"),
    "no pair": ({"tensors": []}, "no pair"),
    "lora_b missing": ({"tensors": [A]}, f"{Q}.lora_a has no {Q}.lora_b"),
    "lora_a missing": ({"tensors": [B]}, f"{Q}.lora_b is not half of a pair"),
    "wrong suffix": ({"tensors": [A, B, f32(Q + ".lora_c", np.ones((2, 2)))]}, f"{Q}.lora_c is not half"),
    "a tensor of a base": ({"tensors": [A, B, f32(Q, np.ones((2, 2)))]}, f"{Q} is not half"),
    "ranks differ": ({"tensors": [A, f32(Q + ".lora_b", np.ones((6, 3)))]}, "rank 2 in lora_a and 3 in lora_b"),
    "a vector": ({"tensors": [f32(Q + ".lora_a", np.ones(4)), B]}, f"{Q}.lora_a has 1 dimensions"),
    "pairs of experts": ({"tensors": EXPERTS}, "e.weight.lora_a has 3 dimensions"),
    "a quantised pair": ({"tensors": [QUANTISED, B]}, f"{Q}.lora_a has type Q8_0"),
    "a value that is not finite": ({"tensors": [A, NOT_A_NUMBER]}, f"{Q} has values that are not finite"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_adapter_is_refused_with_one_clear_sentence(tmp_path, case):
    changes, words = INVALID[case]
    path = write_file(tmp_path / "a.gguf", **changes)
    message = refusal(read_adapter, path)
    assert words in message
    assert message.startswith(str(path))


def infinite(name):
    return {name: Pair(some_pair().lora_a, np.full((6, 2), np.inf, np.float32))}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"alpha": 1e-300}, "alpha is 1e-300"),  # 0 as FLOAT32
        ({"alpha": 1e300}, "alpha is 1e"),  # infinite as FLOAT32
        ({"pairs": {}}, "no pair"),
        ({"pairs": infinite(Q)}, f"{Q} has values that are not finite"),
        ({"pairs": {Q: Pair(some_pair(2).lora_a, some_pair(3).lora_b)}}, "rank 2 in lora_a and 3 in lora_b"),
    ],
)
def test_a_harmful_adapter_is_not_written(tmp_path, changes, words):
    assert words in refusal(write_adapter, tmp_path / "a.gguf", some_adapter(**changes))
    assert list(tmp_path.iterdir()) == []


# --- adapters that belong to another base ---


def test_an_adapter_fits_the_base_it_was_trained_on(tmp_path, base):
    check_fits(tmp_path / "a.gguf", some_adapter(), base, BASE)


def test_the_adapter_of_another_base_is_refused_naming_both(tmp_path, base):
    message = refusal(check_fits, tmp_path / "a.gguf", some_adapter(), base, OTHER)
    for words in (str(tmp_path / "a.gguf"), "another base", "a" * 12, str(base.path), "d" * 12):
        assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "qwen3"}, ("'qwen3'", "'llama'")),
        ({"architecture": "\x1b[2J"}, (r"\x1b[2J",)),
        ({"pairs": {"blk.9.attn_q.weight": some_pair()}}, ("blk.9.attn_q.weight", "does not have")),
        ({"pairs": {Q: some_pair(2, out=7)}}, (Q, "(7, 4)", "(6, 4)")),
        ({"pairs": {Q: some_pair(2, columns=5)}}, (Q, "(6, 5)", "(6, 4)")),
        ({"pairs": {"blk.0.attn_norm.weight": some_pair(1, 4, 1)}}, ("attn_norm", "(4,)")),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_naming_both_files(tmp_path, base, changes, words):
    message = refusal(check_fits, tmp_path / "a.gguf", some_adapter(**changes), base, BASE)
    for word in (*words, str(tmp_path / "a.gguf"), str(base.path)):
        assert word in message


def test_a_cut_adapter_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    write_adapter(path, some_adapter())
    data = path.read_bytes()
    last = data.rindex(struct.pack("<f", some_adapter().pairs[UP].lora_b[-1, -1]))
    path.write_bytes(data[: last + 3])
    assert "cut short" in refusal(read_adapter, path)
