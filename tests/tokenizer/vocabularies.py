"""A small BPE vocabulary in which almost any wrong cut between two words shows, and hard text over its characters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from gguflora.gguf import ValueType, write_gguf
from gguflora.gguf.writer import Value

# Every class that a pattern tells apart: letters with and without case, contractions, digits, other numbers, marks,
# white space inside and outside ASCII, signs, punctuation, scripts with rules of their own, and code points that are
# newer than Unicode 15.0 (a letter, a digit, a symbol).
CHARACTERS = (
    "asztTreEvlLZ \t\n\r\x85\u1680\u2028\u3000'\"#$(-./<[\\^_`{|~0129\u0663\u00bd\u2167"
    "\u00e9\u00c9\u01c5\u043c\u041f\u0905\u0915\u093f\u0301\u3002\u2026\u00b7\u20ac"
    "\u4e2d\u3005\u3041\uac00\u3131\u3105\u0e01\uff21\U00010400\U0001f642\u200d\x00\x1c"
    "\U00010d50\U00010d41\U0001fae9"
)

# Each in the order of a byte alphabet's own characters.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = dict(zip(_PRINTABLE, map(chr, _PRINTABLE), strict=True)) | {
    byte: chr(256 + place) for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))
}

hard_text = st.one_of(
    st.text(st.sampled_from(CHARACTERS), max_size=40),
    st.text(st.sampled_from(" \t\n\r\xa0\u3000a1."), max_size=30),
    st.text(st.sampled_from("0123456789, a"), max_size=30),
    st.text(st.sampled_from("'sStTrReEvVmMlLdD ’"), max_size=30),
    st.text(st.sampled_from("aZéÉмП中क\u093f\u0301 '"), max_size=30),
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                "<|im_start|>",
                "<|im_end|>",
                "<|endoftext|>",
                "<|im",
                "_end|>",
                " ",
                "\n",
                "user",
                "<sentinel:12>",
                "IMGIMGABZ",
            ]
        ),
        max_size=8,
    ).map("".join),
)
"""Any Unicode text without surrogates, most of it where tokenizers go wrong."""


def spelled(text: str) -> str:
    """`text` in GPT-2's byte alphabet, worked out apart from the code under test."""
    return "".join(_BYTES[byte] for byte in text.encode())


def pair_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: all bytes, every character, and every pair of two characters."""
    tokens = dict.fromkeys(_BYTES.values())
    merges: dict[str, None] = {}

    def merge(left: str, right: str) -> None:
        merges.setdefault(f"{left} {right}")
        tokens.setdefault(left + right)

    for character in CHARACTERS:
        spelling = spelled(character)
        for end in range(1, len(spelling)):
            merge(spelling[:end], spelling[end])
    for first in CHARACTERS:
        for second in CHARACTERS:
            merge(spelled(first), spelled(second))
    merge(spelled("  "), spelled("  "))
    merge(spelled("    "), spelled("  "))  # whether six spaces are cut
    tokens.setdefault("sas")  # a whole word that no merges lead to
    return list(tokens), list(merges)


def write_vocabulary(
    path: Path, tokens: list[str], merges: list[str], more: Mapping[str, Value | None] | None = None
) -> Path:
    """A GGUF without tensors that holds a vocabulary; `more` adds to its metadata, replaces, or (None) takes away."""
    metadata: dict[str, Value | None] = {
        "general.architecture": (ValueType.STRING, "llama"),
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": (ValueType.INT32, [1] * len(tokens)),
        "tokenizer.ggml.merges": (ValueType.STRING, merges),
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, 0),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, 0),
    }
    given = metadata | dict(more or {})
    write_gguf(path, {key: value for key, value in given.items() if value is not None}, [])
    return path
