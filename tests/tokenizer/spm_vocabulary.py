"""A small SentencePiece vocabulary in which the order of merges shows, and a model that llama-server takes with it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from gguflora.gguf import Tensor, ValueType, f32, open_gguf, write_gguf
from gguflora.gguf.writer import Value
from tests.tiny import tiny_llama

UNKNOWN, BOS, EOS = 0, 1, 2

# (text, tokenizer.ggml.token_type); no two special ones of one length, which llama.cpp sorts at random.
SPECIAL = (
    ("<|assistant|>", 3),
    ("<|user|>", 3),
    ("<|end|>", 3),
    ("<ab>x", 4),
    ("a\n", 4),
    ("\u2581\u2581\u2581c \u2581\u2581\u2581", 4),  # user-defined: shown as it stands
    ("b\u2581c\u2581unused", 5),
    ("undefined", 0),
)
CHARACTERS = "abc\u2581\u00e9\u4e2d\n,"
"""The characters that tokens are made of."""

OTHERS = " x\U0001f642\u0301\x00<|end>\t[]"
"""Characters without a token of their own, the space among them: bytes, but for the space."""

spm_text = st.one_of(
    st.text(st.sampled_from(CHARACTERS + " "), max_size=60),
    st.text(st.sampled_from("ab "), max_size=200),
    st.text(st.sampled_from(CHARACTERS + OTHERS), max_size=40),
    st.text(max_size=20),
    st.lists(
        st.sampled_from([text for text, _ in SPECIAL] + ["<s>", "</s>", "<unk>", "<0x41>", " ", "\n", "ab", "\u2581"]),
        max_size=8,
    ).map("".join),
)
"""Any Unicode text without surrogates, most of it over the vocabulary's characters and special tokens."""


def _pieces() -> list[tuple[str, int]]:
    draw = random.Random(0)
    words = dict.fromkeys(CHARACTERS)
    words |= dict.fromkeys(first + second for first in CHARACTERS for second in CHARACTERS if draw.random() < 0.7)
    for _ in range(300):
        words[draw.choice(list(words)) + draw.choice(list(words))[:3]] = None
    words |= dict.fromkeys("".join(draw.choices(CHARACTERS, k=5)) for _ in range(30))  # most can't be merged to
    controls = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    return [*controls, *((f"<0x{byte:02X}>", 6) for byte in range(256)), *((word, 1) for word in words), *SPECIAL]


PIECES = _pieces()
"""Every token with its type."""


def spm_metadata(more: Mapping[str, Value] | None = None, renamed: Mapping[str, str] | None = None) -> dict[str, Value]:
    """The vocabulary as metadata, ids of BOS and so on left to llama.cpp's defaults.

    Args:
        more: adds to it or replaces.
        renamed: new texts of some tokens, which become normal ones.
    """
    draw = random.Random(1)
    new = renamed or {}
    metadata: dict[str, Value] = {
        "general.architecture": (ValueType.STRING, "llama"),
        "tokenizer.ggml.model": (ValueType.STRING, "llama"),
        "tokenizer.ggml.tokens": (ValueType.STRING, [new.get(text, text) for text, _ in PIECES]),
        "tokenizer.ggml.token_type": (ValueType.INT32, [1 if text in new else kind for text, kind in PIECES]),
        # few different ones: ties go by place
        "tokenizer.ggml.scores": (ValueType.FLOAT32, draw.choices([-7.0, -3.0, -2.5, 0.0, 4.0], k=len(PIECES))),
    }
    return metadata | dict(more or {})


def phi_3_metadata(more: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """The same of a Phi-3, whose special tokens swallow the white space behind them: llama.cpp goes by the name.

    It takes a Phi-3 without `<|endoftext|>` for broken.
    """
    name: dict[str, Value] = {"general.name": (ValueType.STRING, "A Phi-3 mini")}
    return spm_metadata(name | dict(more or {}), {"undefined": "<|endoftext|>"})


def write_spm(path: Path, metadata: Mapping[str, Value]) -> Path:
    """A GGUF without tensors."""
    write_gguf(path, metadata, [])
    return path


def write_spm_model(path: Path, metadata: Mapping[str, Value]) -> Path:
    """A tiny random model with this tokenizer in place of its own."""
    tiny = open_gguf(tiny_llama(path.with_name("tiny.gguf")))
    numbers: dict[str, Value] = {}
    for key, value in tiny.metadata.items():
        kind = tiny.metadata.value_type(key)
        if kind is not None and not key.startswith("tokenizer."):
            numbers[key] = (kind, value)
    tensors = {name: Tensor(name, info.type, info.shape, tiny.raw(name)) for name, info in tiny.tensors.items()}
    width = tiny.tensors["token_embd.weight"].shape[1]
    tensors["token_embd.weight"] = f32("token_embd.weight", np.random.default_rng(0).normal(size=(len(PIECES), width)))
    write_gguf(path, numbers | dict(metadata), list(tensors.values()))
    return path
