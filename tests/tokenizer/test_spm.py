"""SentencePiece text becomes the ids that llama_tokenize gives, and ids the bytes that llama_token_to_piece gives."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguflora.errors import DataError, FileError
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import Tokenizer, load_tokenizer
from gguflora.tokenizer.spm import neighbours
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.spm_vocabulary import (
    BOS,
    CHARACTERS,
    PIECES,
    SPECIAL,
    phi_3_metadata,
    spm_metadata,
    spm_text,
    write_spm,
)
from tests.tokenizer.vocabularies import hard_text

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "vocab"
PUBLISHED_SPM = ("llama-spm", "phi-3")

N_TOKENS = len(PIECES)
# What the file may say or leave out.
VARIANTS: dict[str, dict[str, Value]] = {
    "silent": {},
    "no space prefix": {"tokenizer.ggml.add_space_prefix": (ValueType.BOOL, False)},
    "whole scores": {"tokenizer.ggml.scores": (ValueType.INT32, [(7 * token) % 11 - 5 for token in range(N_TOKENS)])},
    "too fine scores": {  # in float32 they are equal
        "tokenizer.ggml.scores": (ValueType.INT32, [2**30 - token % 9 for token in range(N_TOKENS)])
    },
    "extreme scores": {
        "tokenizer.ggml.scores": (
            ValueType.FLOAT32,
            [[-float("inf"), 1e-45, -0.0, 0.0, 3e38][token % 5] for token in range(N_TOKENS)],
        )
    },
    "eos, no bos": {
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, False),
        "tokenizer.ggml.add_eos_token": (ValueType.BOOL, True),
    },
    "white space is not removed": {"tokenizer.ggml.remove_extra_whitespaces": (ValueType.BOOL, True)},
}

Both = tuple[Tokenizer, LlamaVocabulary]
Published = Callable[[str], Both]


def _both(path: Path) -> Both:
    return load_tokenizer(open_gguf(path)), LlamaVocabulary(path)


def _metadata(variant: str) -> dict[str, Value]:
    return phi_3_metadata() if variant == "phi-3" else spm_metadata(VARIANTS[variant])


@pytest.fixture(scope="module", params=[*VARIANTS, "phi-3"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Ours and llama.cpp's tokenizer on each variant of the small vocabulary."""
    return _both(write_spm(tmp_path_factory.mktemp("spm") / "v.gguf", _metadata(request.param)))


@pytest.fixture(scope="module")
def published() -> Published:
    """Ours and llama.cpp's tokenizer on a vocabulary that llama.cpp publishes, by name."""

    @functools.cache
    def load(name: str) -> Both:
        path = PUBLISHED / f"ggml-vocab-{name}.gguf"
        if not path.exists():
            pytest.skip(f"llama.cpp's vocabulary files are not in {PUBLISHED}")
        return _both(path)

    return load


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Both:
    return _both(gemma3_path)


def _same_ids(both: Both, text: str, add_special: bool, parse_special: bool) -> None:
    ours, theirs = both
    expected = theirs.tokenize(text, add_special=add_special, parse_special=parse_special)
    assert ours.encode(text, add_special=add_special, parse_special=parse_special) == expected


@settings(max_examples=300, deadline=None)
@given(text=spm_text, add_special=st.booleans(), parse_special=st.booleans())
@example(text="", add_special=True, parse_special=True)
@example(text="ab" * 3000, add_special=True, parse_special=True)  # longer than the pieces that are remembered
@example(text=" <s>  a<|user|> \n b</s>c<unk><|end|>", add_special=True, parse_special=True)
def test_ids_are_llama_cpps_whatever_the_file_says(
    both: Both, text: str, add_special: bool, parse_special: bool
) -> None:
    """Merges by score and place, bytes, special tokens, the space before a text and behind each special token."""
    _same_ids(both, text, add_special, parse_special)


def test_the_variants_show(tmp_path: Path) -> None:
    """The test above can fail: other scores, or another prefix, give other ids."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(CHARACTERS, k=30)) for _ in range(50)]
    seen = set()
    for variant in [*VARIANTS, "phi-3"]:
        tokenizer = load_tokenizer(open_gguf(write_spm(tmp_path / "v.gguf", _metadata(variant))))
        seen.add(str([tokenizer.encode(text) for text in texts]))
    assert len(seen) == len(
        VARIANTS
    )  # one less than were tried: SentencePiece in llama.cpp does not act on remove_extra_whitespaces


@pytest.mark.parametrize("special", [True, False])
def test_bytes_of_every_type_of_token_are_llama_cpps(both: Both, special: bool) -> None:
    _same_bytes(both, special)


def _same_bytes(both: Both, special: bool) -> None:
    ours, theirs = both
    for token in range(theirs.size):
        assert ours.token_bytes(token, special=special) == theirs.token_bytes(token, special=special), token


def test_end_of_generation_is_llama_cpps(both: Both) -> None:
    ours, theirs = both
    assert ours.vocabulary.eog == theirs.eog()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abc \u00e9\u4e2d\n,x\U0001f642")))
def test_decode_gives_the_text_with_the_space_in_front(small: Both, text: str) -> None:
    """Where `encode` puts one it is kept: tokens may come from the middle of a text."""
    ours, _ = small
    while "a\n" in text:  # a special token, and behind it there is a space again
        text = text.replace("a\n", "")
    ids = ours.encode(text, add_special=False)
    assert ours.decode(ids) == (" " + text if text else "")
    assert ours.decode([BOS, *ids], special=False) == ours.decode(ids)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return _both(write_spm(tmp_path_factory.mktemp("small") / "v.gguf", spm_metadata()))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> LlamaVocabulary:
    """llama.cpp's tokenizer on `small` where the file asks for no space before a text."""
    metadata = spm_metadata(VARIANTS["no space prefix"])
    return LlamaVocabulary(write_spm(tmp_path_factory.mktemp("twin") / "v.gguf", metadata))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abc \u2581\u00e9,x\U0001f642"), max_size=30))
def test_a_text_that_continues_has_no_space_in_front(small: Both, twin: LlamaVocabulary, text: str) -> None:
    """Up to its first special token: behind that a text begins anew."""
    ours, theirs = small
    expected = twin.tokenize(text, add_special=False)
    assert ours.encode(text, add_special=False, continues=True) == expected
    expected += theirs.tokenize("<|end|>" + text, add_special=False)
    assert ours.encode(f"{text}<|end|>{text}", add_special=False, continues=True) == expected


@settings(max_examples=50, deadline=None)
@given(text=hard_text)
def test_whether_it_continues_is_nothing_to_byte_level_bpe(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.encode(text, continues=True) == smollm2.encode(text)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(open_gguf(smollm2_path))


@pytest.mark.parametrize("name", PUBLISHED_SPM)
def test_published_texts_have_the_published_ids(name: str, published: Published) -> None:
    """The texts and ids that llama.cpp publishes (and reads so in its tests/test-tokenizer-0.cpp)."""
    tokenizer, _ = published(name)
    path = PUBLISHED / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special=False, parse_special=False) == [int(word) for word in line.split()]


real_text = st.one_of(
    hard_text,
    st.lists(
        st.sampled_from(
            [*(text for text, _ in SPECIAL), "<s>", "</s>", "<start_of_turn>", "<bos>", "<h1>", "<unused9>"]
        )
        | st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\u2581", "def f(x):", "Hello", " world", "\u00fcber"]),
        max_size=10,
    ).map("".join),
)


@pytest.mark.parametrize("name", PUBLISHED_SPM)
@settings(max_examples=300, deadline=None)
@given(text=real_text, add_special=st.booleans(), parse_special=st.booleans())
def test_published_vocabularies_give_llama_cpps_ids(
    published: Published, name: str, text: str, add_special: bool, parse_special: bool
) -> None:
    _same_ids(published(name), text, add_special, parse_special)


@pytest.mark.parametrize("name", PUBLISHED_SPM)
def test_published_vocabularies_give_llama_cpps_bytes(published: Published, name: str) -> None:
    _same_bytes(published(name), special=False)


@settings(max_examples=300, deadline=None)
@given(text=real_text, add_special=st.booleans(), parse_special=st.booleans())
def test_gemma_3_ids_are_llama_cpps(gemma3: Both, text: str, add_special: bool, parse_special: bool) -> None:
    _same_ids(gemma3, text, add_special, parse_special)


def test_gemma_3_ids_of_source_code_are_llama_cpps(gemma3: Both) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for version in (text, text.replace("\n", "\r\n"), text.replace("    ", "\t")):
        _same_ids(gemma3, version, True, True)


def test_gemma_3_bytes_of_every_token_are_llama_cpps(gemma3: Both) -> None:
    _same_bytes(gemma3, special=False)


def test_a_character_without_tokens_is_refused_by_name(tmp_path: Path) -> None:
    """llama.cpp ends the process here."""
    metadata = spm_metadata(renamed={"<0xC3>": "[C3]"})
    tokenizer = load_tokenizer(open_gguf(write_spm(tmp_path / "v.gguf", metadata)))
    assert tokenizer.decode(tokenizer.encode("\u00e9\U0001f642", add_special=False)) == " \u00e9\U0001f642"
    with pytest.raises(DataError, match=r"no token for the character '\u00fc' \(U\+00FC\) nor for its bytes; leave it"):
        tokenizer.encode("a\u00fc")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("scores", (ValueType.FLOAT32, [0.0]), f"it has {N_TOKENS} tokens, but 1 scores"),
        ("scores", (ValueType.STRING, ["a"]), "scores is not an array of numbers"),
        ("scores", (ValueType.FLOAT32, [0.0, float("nan")] * N_TOKENS), "the score of token 1 is not a number"),
        ("add_space_prefix", (ValueType.UINT32, 1), "add_space_prefix is 1, not true or false"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path: Path, key: str, value: Value, reason: str) -> None:
    path = write_spm(tmp_path / "v.gguf", spm_metadata({f"tokenizer.ggml.{key}": value}))
    with pytest.raises(FileError, match=reason):
        load_tokenizer(open_gguf(path))


def test_scores_may_be_absent(tmp_path: Path) -> None:
    """All merges are worth the same then."""
    metadata = spm_metadata()
    del metadata["tokenizer.ggml.scores"]
    both = _both(write_spm(tmp_path / "v.gguf", metadata))
    _same_ids(both, "abcab,ca\n\u00e9\u4e2dbca ab " * 9, True, True)


@given(st.lists(st.text(st.sampled_from("ab\0\u2581\u00e9\U0001f468\U0010ffff"), min_size=1), min_size=1))
def test_neighbours_are_those_within_a_token(tokens: list[str]) -> None:
    """And not the last character of one and the first of the next."""
    assert neighbours(tokens) == {token[at : at + 2] for token in tokens for at in range(len(token) - 1)}
