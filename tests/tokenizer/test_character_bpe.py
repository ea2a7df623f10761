"""Text becomes the ids of llama_tokenize where tokens are characters: Gemma 4, Sarvam, two encoders."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguflora.errors import FileError, ModelError
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import Tokenizer, load_tokenizer
from gguflora.tokenizer.pretokenizers import OF_CHARACTERS
from tests.tokenizer.character_vocabulary import BOS, CHARACTERS, character_text, write_characters
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.vocabularies import hard_text

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "vocab" / "ggml-vocab-gemma-4.gguf"

KINDS = {
    "gemma4": ("gemma4", "absent"),  # the file's `pre` is passed over
    "gemma4 as a gpt2": ("gpt2", "gemma4"),
    "granite": ("gpt2", "granite-embed-multi-311m"),
    "sarvam": ("gpt2", "sarvam-moe"),
    "whitespace": ("whitespace", "whitespace"),
}
"""tokenizer.ggml.model and tokenizer.ggml.pre."""

Both = tuple[Tokenizer, LlamaVocabulary]


def _both(path: Path) -> Both:
    return load_tokenizer(open_gguf(path)), LlamaVocabulary(path)


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Ours and llama.cpp's tokenizer on the small vocabulary, of each kind."""
    return _both(write_characters(tmp_path_factory.mktemp("characters") / "v.gguf", *KINDS[request.param]))


def _same_ids(both: Both, text: str, add_special: bool, parse_special: bool) -> None:
    ours, theirs = both
    expected = theirs.tokenize(text, add_special=add_special, parse_special=parse_special)
    assert ours.encode(text, add_special=add_special, parse_special=parse_special) == expected


def test_every_name_is_tried() -> None:
    assert set(OF_CHARACTERS) <= {name for kind in KINDS.values() for name in kind}


@settings(max_examples=400, deadline=None)
@given(text=character_text | hard_text, add_special=st.booleans(), parse_special=st.booleans())
@example(text="", add_special=True, parse_special=True)
@example(text="ab" * 3000, add_special=True, parse_special=True)  # longer than the pieces that are remembered
@example(text="a\n\n\nb\n\n\n\nc\n\n\n\n\n \n\n", add_special=False, parse_special=True)  # 3 and 5 are tokens
@example(text="  a   b \u2581\u2581 ", add_special=False, parse_special=True)
@example(text="a\x1cb\x85c\xa0d\u3000\u2028e", add_special=False, parse_special=True)  # U+001C is no white space
def test_ids_are_llama_cpps(both: Both, text: str, add_special: bool, parse_special: bool) -> None:
    """Merges by rank and place, parts without a token, bytes without one, line ends, spaces, special tokens."""
    _same_ids(both, text, add_special, parse_special)


@pytest.mark.parametrize("special", [True, False])
def test_bytes_of_every_token_are_llama_cpps(both: Both, special: bool) -> None:
    ours, theirs = both
    for token in range(theirs.size):
        assert ours.token_bytes(token, special=special) == theirs.token_bytes(token, special=special), token


def test_end_of_generation_is_llama_cpps(both: Both) -> None:
    ours, theirs = both
    assert ours.vocabulary.eog == theirs.eog()


def test_the_kinds_show(tmp_path: Path) -> None:
    """The tests above can fail: each kind gives other ids, but for Granite's, which are Gemma 4's."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(CHARACTERS[:6] + "\n\n ", k=30)) for _ in range(50)]
    seen: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        tokenizer = load_tokenizer(open_gguf(write_characters(tmp_path / "v.gguf", *kind)))
        seen.setdefault(str([tokenizer.encode(text) for text in texts]), []).append(name)
    assert list(seen.values()) == [["gemma4", "gemma4 as a gpt2", "granite"], ["sarvam"], ["whitespace"]]


@pytest.mark.parametrize(("kind", "forced"), [("gemma4", True), ("granite", True), ("sarvam", False)])
def test_gemma_4_begins_every_text_whatever_the_file_says(kind: str, forced: bool, tmp_path: Path) -> None:
    off: dict[str, Value | None] = {"tokenizer.ggml.add_bos_token": (ValueType.BOOL, False)}
    both = _both(write_characters(tmp_path / "v.gguf", *KINDS[kind], off))
    _same_ids(both, "ab", add_special=True, parse_special=True)
    assert (both[0].encode("ab")[0] == BOS) == forced


def test_gemma_4_needs_the_token_that_begins_a_text(tmp_path: Path) -> None:
    """llama.cpp ends its process at the first text."""
    path = write_characters(tmp_path / "v.gguf", *KINDS["gemma4"], {"tokenizer.ggml.bos_token_id": None})
    with pytest.raises(FileError, match="it asks for a bos token in every text but has none"):
        load_tokenizer(open_gguf(path))


@pytest.mark.parametrize(("model", "pre"), [("gpt2", "whitespace"), ("whitespace", "gemma4"), ("whitespace", "")])
def test_whitespace_goes_with_whitespace_alone(model: str, pre: str, tmp_path: Path) -> None:
    """llama.cpp ends its process at two spaces in a row where only `pre` says so."""
    with pytest.raises(ModelError, match="whitespace goes with whitespace alone"):
        load_tokenizer(open_gguf(write_characters(tmp_path / "v.gguf", model, pre)))


def test_a_vocabulary_without_capitals_is_refused(tmp_path: Path) -> None:
    more: dict[str, Value | None] = {"tokenizer.ggml.normalizer.lowercase": (ValueType.BOOL, True)}
    with pytest.raises(ModelError, match="makes capital letters small, which is not supported"):
        load_tokenizer(open_gguf(write_characters(tmp_path / "v.gguf", *KINDS["whitespace"], more)))


@pytest.fixture(scope="module")
def gemma4() -> Both:
    """On the vocabulary of Gemma 4 that llama.cpp publishes."""
    if not PUBLISHED.exists():
        pytest.skip(f"llama.cpp's vocabulary file {PUBLISHED.name} is not in {PUBLISHED.parent}")
    return _both(PUBLISHED)


def test_published_texts_have_the_published_ids(gemma4: Both) -> None:
    """The texts and ids that llama.cpp publishes (and reads so in its tests/test-tokenizer-0.cpp)."""
    texts = PUBLISHED.with_name(PUBLISHED.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = PUBLISHED.with_name(PUBLISHED.name + ".out").read_text().removesuffix("\n").split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = gemma4[0].encode(text, add_special=False, parse_special=False)
        assert ids == [int(word) for word in line.split()]


_WORDS = ["<|turn>", "<turn|>", "<bos>", "<|tool_call>", "<unused9>", "\n\n", " ", "  ", "\t", "def f(x):", "\u00fcber"]


@settings(max_examples=300, deadline=None)
@given(
    text=hard_text | st.lists(st.sampled_from([*_WORDS, "Hello", " world", "\U0001f469\u200d\U0001f467"])).map("".join),
    parse_special=st.booleans(),
)
def test_gemma_4_ids_are_llama_cpps(gemma4: Both, text: str, parse_special: bool) -> None:
    _same_ids(gemma4, text, True, parse_special)


def test_gemma_4_ids_of_source_code_are_llama_cpps(gemma4: Both) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for version in (text, text.replace("\n", "\r\n"), text.replace("    ", "\t")):
        _same_ids(gemma4, version, True, True)
