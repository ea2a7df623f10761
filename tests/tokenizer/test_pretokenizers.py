"""Every `pre` name cuts text as llama.cpp cuts it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gguflora.errors import FileError
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import load_tokenizer
from gguflora.tokenizer.pretokenizers import PRETOKENIZERS
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.vocabularies import CHARACTERS, pair_vocabulary, write_vocabulary

MERGES = "tokenizer.ggml.merges"
Pairs = tuple[list[str], list[str]]

# What the random texts below might miss: a contraction that swallows letters, numbers of every length with and without
# text before them, line ends in every order, long white space, a whole word that is a token.
_HARD = (
    "",
    "sas",
    "'sTe x'st 'Re'VE'lLs 'Ts",
    "1 12 123 1234 12345 1234567 a  1234 \u0663\u0663\u0663\u0663 \u00bd\u2167",
    "a\n\n \r\n\r b \n\t\n-\n-/\n  a",
    " " * 7 + "a" + " " * 700 + "a",
    "\u3000\u1680\u2028 \u3000a\u3000.\u4e2d\u3000",
    "\u00e9ZaZ\u00e9 \u041f\u043c\u041f \u0905\u0915\u093f\u0301a\u0301",
    "<sentinel:12> IMGIMGABZ",
    "a\u4e2da \u4e2d'\u4e2d'sz'rEa'rx\u3005\u3007\u4e2d\u3041 \u4e2d!\u4e2d\u0301a'D",  # Han and its neighbours
    "-\ufa6e-\ufa6ea\u3400\u2e80\U00020000\U0002b740\U0002ebef\U0002ebf0\U0002f800\U00030000a\uf900",
)


def _texts() -> list[str]:
    draw = random.Random(0)
    pools = (
        CHARACTERS,
        " \t\n\r\u3000a1.",
        "0129, a",
        "'sTrevLl Z",
        "aZ\u00e9\u00c9\u043c\u041f\u4e2d\u0915\u093f\u0301 '",
    )
    return [*_HARD, *("".join(draw.choices(pool, k=draw.randint(1, 40))) for pool in pools for _ in range(20))]


TEXTS = _texts()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return pair_vocabulary()


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_cuts_as_llama_cpp(pre: str, pairs: Pairs, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", *pairs, {"tokenizer.ggml.pre": (ValueType.STRING, pre)})
    ours, theirs = load_tokenizer(open_gguf(path)), LlamaVocabulary(path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.tokenize(text), repr(text)


def test_kimi_k2_may_lack_merges(tmp_path: Path) -> None:
    """llama.cpp then takes its bytes' tokens; it refuses every other name without merges."""
    metadata: dict[str, Value | None] = {"tokenizer.ggml.pre": (ValueType.STRING, "kimi-k2"), MERGES: None}
    path = write_vocabulary(tmp_path / "v.gguf", [*pair_vocabulary()[0]], [], metadata)
    assert load_tokenizer(open_gguf(path)).encode("az \u4e2d") == LlamaVocabulary(path).tokenize("az \u4e2d")
    path = write_vocabulary(tmp_path / "v.gguf", ["a"], [], {MERGES: None})
    with pytest.raises(FileError, match=r"has no merges \(tokenizer.ggml.merges\)"):
        load_tokenizer(open_gguf(path))


def test_texts_tell_rows_apart(pairs: Pairs, tmp_path: Path) -> None:
    """The test above can fail: giving a row the patterns of another changes ids."""
    seen: dict[str, set[str]] = {}
    for pre in {row.patterns: pre for pre, row in reversed(PRETOKENIZERS.items())}.values():
        path = write_vocabulary(tmp_path / "v.gguf", *pairs, {"tokenizer.ggml.pre": (ValueType.STRING, pre)})
        tokenizer = load_tokenizer(open_gguf(path))
        ids = str([tokenizer.encode(text, add_special=False) for text in TEXTS])
        seen.setdefault(ids, set()).add(pre)
    # These two cut alike: `\s*[\r\n]` takes every line end that `\s*[\r\n]+` takes.
    assert [names for names in seen.values() if len(names) > 1] == [{"qwen2", "bailingmoe"}]
