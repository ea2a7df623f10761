"""A small vocabulary of characters in which the order of merges shows, for every `pre` whose tokens are characters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from gguflora.gguf import ValueType
from gguflora.gguf.writer import Value
from tests.tokenizer.vocabularies import write_vocabulary

BOS = 1
CHARACTERS = "abc\u2581\u00e9\u4e2d\n,1\U0001f469\u200d"
"""What merges are made of: letters, a space, a line end, emoji with joiners; tokens but for the last two."""

OTHERS = " x\U0001f642\u0301\x00\t\r\x85\xa0\u3000\x1c<|end>[]\u0915\u093f\uac00"
"""Characters without a token or a merge of their own: bytes, of which some have no token."""

# (text, tokenizer.ggml.token_type); no two special ones of one length, which llama.cpp sorts at random.
_SPECIAL = (
    ("<|tool_call>", 4),
    ("<turn|>", 3),
    ("<ab>", 4),
    ("a b", 4),
    ("<unused1>", 5),
    ("undefined", 0),
    ("\u2581c\u0120", 1),
)

character_text = st.one_of(
    st.text(st.sampled_from(CHARACTERS + " "), max_size=60),
    st.text(st.sampled_from("ab "), max_size=200),
    st.text(st.sampled_from("a\n\r "), max_size=30),
    st.text(st.sampled_from("\U0001f469\u200d\U0001f467a"), max_size=20),
    st.text(st.sampled_from(CHARACTERS + OTHERS), max_size=40),
    st.text(max_size=20),
    st.lists(
        st.sampled_from([text for text, _ in _SPECIAL] + ["<bos>", "<0x41>", " ", "  ", "\n", "\n\n\n\n", "ab", "11"]),
        max_size=8,
    ).map("".join),
)
"""Any Unicode text without surrogates, most of it over the vocabulary's characters and special tokens."""


_LONGER = 300  # merges of parts that may be longer than a character


def _merges(draw: random.Random) -> list[str]:
    """Merges of random parts, half of the characters' pairs first, some twice, some that no part leads to."""
    merges = [f"{left} {right}" for left in CHARACTERS for right in CHARACTERS if draw.random() < 0.5]
    draw.shuffle(merges)
    parts = [*CHARACTERS, *(merge.replace(" ", "") for merge in merges)]
    for _ in range(_LONGER):
        left, right = draw.choice(parts), draw.choice(parts)
        merges.insert(draw.randrange(len(merges)), f"{left} {right}")
        parts.append(left + right)
    return [*merges, *draw.sample(merges, 10), "q r", "", "a", " a b", "a  b"]


def pieces_and_merges() -> tuple[list[tuple[str, int]], list[str]]:
    """Every token with its type, and the merges."""
    draw = random.Random(0)
    merges = _merges(draw)
    made = dict.fromkeys(merge.replace(" ", "") for merge in merges if merge.count(" ") == 1)
    tokens = dict.fromkeys(CHARACTERS[:-2])
    tokens |= dict.fromkeys(text for text in made if draw.random() < 0.8)  # the others become bytes
    tokens |= dict.fromkeys(["\n" * count for count in (2, 3, 5)])
    given = {*tokens, *(text for text, _ in _SPECIAL)}
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256) if byte % 5]
    special = [(text, kind) for text, kind in _SPECIAL if text not in tokens]
    controls = [("<pad>", 3), ("<bos>", 3)]
    assert not given & {"<pad>", "<bos>"}
    return [*controls, *((text, 6) for text in bytes_), *((text, 1) for text in tokens), *special], merges


def write_characters(path: Path, model: str, pre: str, more: Mapping[str, Value | None] | None = None) -> Path:
    """The vocabulary as a file of this kind; `more` adds to its metadata, replaces, or (None) takes away."""
    pieces, merges = pieces_and_merges()
    kind: dict[str, Value | None] = {
        "tokenizer.ggml.model": (ValueType.STRING, model),
        "tokenizer.ggml.pre": (ValueType.STRING, pre),
        "tokenizer.ggml.token_type": (ValueType.INT32, [kind for _, kind in pieces]),
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, BOS),
        "tokenizer.ggml.eos_token_id": None,
    }
    return write_vocabulary(path, [text for text, _ in pieces], merges, kind | dict(more or {}))
