"""Text becomes the ids that llama_tokenize gives, and ids the bytes that llama_token_to_piece gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguflora.errors import DataError, FileError, ModelError
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import Tokenizer, load_tokenizer
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.vocabularies import hard_text, pair_vocabulary, spelled, write_vocabulary

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "vocab"
PUBLISHED_BPE = ("deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "starcoder")

Both = Callable[[dict[int, tuple[str, int]], dict[str, Value]], tuple[Tokenizer, LlamaVocabulary]]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(open_gguf(smollm2_path))


@pytest.fixture(scope="module")
def llama_smollm2(smollm2_path: Path) -> LlamaVocabulary:
    return LlamaVocabulary(smollm2_path)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """Ours and llama.cpp's tokenizer over ASCII and further tokens, given as {id: (text, type)} from 128 on."""

    def build(special: dict[int, tuple[str, int]], more: dict[str, Value]) -> tuple[Tokenizer, LlamaVocabulary]:
        tokens = [spelled(chr(byte)) for byte in range(128)] + [text for text, _ in special.values()]
        types = [1] * 128 + [kind for _, kind in special.values()]
        metadata: dict[str, Value] = {"tokenizer.ggml.token_type": (ValueType.INT32, types)} | more
        path = write_vocabulary(tmp_path / "v.gguf", tokens, [], metadata)
        return load_tokenizer(open_gguf(path)), LlamaVocabulary(path)

    return build


@settings(max_examples=1000, deadline=None)
@given(text=hard_text, add_special=st.booleans(), parse_special=st.booleans())
@example(text="", add_special=True, parse_special=True)
@example(text="-\x04-", add_special=False, parse_special=True)  # SmolLM2 has no token for this byte, but one for --
def test_smollm2_ids_are_llama_cpps(
    smollm2: Tokenizer, llama_smollm2: LlamaVocabulary, text: str, add_special: bool, parse_special: bool
) -> None:
    expected = llama_smollm2.tokenize(text, add_special=add_special, parse_special=parse_special)
    assert smollm2.encode(text, add_special=add_special, parse_special=parse_special) == expected


def test_source_code_ids_are_llama_cpps(smollm2: Tokenizer, llama_smollm2: LlamaVocabulary) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for version in (text, text.replace("\n", "\r\n"), text.replace("    ", "\t")):
        assert smollm2.encode(version) == llama_smollm2.tokenize(version)


@pytest.mark.parametrize("special", [True, False])
def test_smollm2_bytes_of_every_token_are_llama_cpps(
    smollm2: Tokenizer, llama_smollm2: LlamaVocabulary, special: bool
) -> None:
    for token in range(llama_smollm2.size):
        assert smollm2.token_bytes(token, special=special) == llama_smollm2.token_bytes(token, special=special), token


@pytest.mark.parametrize("name", PUBLISHED_BPE)
def test_published_vocabularies(name: str) -> None:
    """The texts and ids that llama.cpp publishes (and reads so in its tests/test-tokenizer-0.cpp)."""
    path = PUBLISHED / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"llama.cpp's vocabulary files are not in {PUBLISHED}")
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    tokenizer = load_tokenizer(open_gguf(path))
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special=False, parse_special=False) == [int(word) for word in line.split()]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab <>|x\n"), max_size=30), parse_special=st.booleans())
@example(text="<ab>x> <ab><xa>ab> <x>\n\n<ab>", parse_special=False)
def test_special_tokens_cut_as_in_llama_cpp(
    specials: tuple[Tokenizer, LlamaVocabulary], text: str, parse_special: bool
) -> None:
    """User-defined tokens always, control and unknown tokens on demand; the longest text first."""
    ours, theirs = specials
    assert ours.encode(text, parse_special=parse_special) == theirs.tokenize(text, parse_special=parse_special)


@pytest.fixture(scope="module")
def specials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, LlamaVocabulary]:
    special = {
        "<xa>ab": 2,
        "<ab>x": 3,
        "<ab>": 4,
        "> <": 4,
        "x>": 3,
        "\n": 4,
    }  # no two of one length: llama.cpp sorts those at random
    tokens, merges = pair_vocabulary()
    types = [1] * len(tokens) + list(special.values())
    path = write_vocabulary(
        tmp_path_factory.mktemp("specials") / "v.gguf",
        [*tokens, *special],
        merges,
        {
            "tokenizer.ggml.token_type": (ValueType.INT32, types),
            "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
            "tokenizer.ggml.add_eos_token": (ValueType.BOOL, True),
        },
    )
    return load_tokenizer(open_gguf(path)), LlamaVocabulary(path)


def test_phi3_tokens_swallow_the_space_after_them(both: Both) -> None:
    special = {
        128: ("<|user|>", 3),
        129: ("<|end|>", 3),
        130: ("<s>", 3),
        131: ("</s>", 3),
        132: ("<unk>", 2),
        133: ("<|endoftext|>", 3),
    }
    ours, theirs = both(special, {"general.name": (ValueType.STRING, "My Phi-3 mini")})
    text = "a <|user|> \n\tb<|user|>  <|end|> c <s> d</s> e <unk> <|endoftext|> f<|end|> "
    assert ours.encode(text) == theirs.tokenize(text)
    assert ours.vocabulary.rstrip == {128, 129, 131}


def test_jina_mask_swallows_the_space_before_it(both: Both) -> None:
    ours, theirs = both({128: ("<mask>", 3)}, {"tokenizer.ggml.pre": (ValueType.STRING, "jina-v2-code")})
    text = "a <mask> b  \n<mask><mask> <mask>"
    assert ours.encode(text) == theirs.tokenize(text)
    assert ours.vocabulary.lstrip == {128}


@pytest.mark.parametrize("special", [True, False])
def test_bytes_of_every_type_of_token_are_llama_cpps(both: Both, special: bool) -> None:
    kinds = {
        128: ("<control>", 3),
        129: ("<mine \u0120>", 4),
        130: ("<unknown>", 2),
        131: ("<unused>", 5),
        132: ("<0xC3>", 6),
        133: ("<0xa9>", 6),
        134: ("\u0120w\u00c3\u00a9", 1),
        135: ("\u4e2d", 1),  # not in the byte alphabet
        136: ("<undefined>", 0),
        137: ("", 1),
    }
    ours, theirs = both(kinds, {})
    for token in kinds:
        assert ours.token_bytes(token, special=special) == theirs.token_bytes(token, special=special), token


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=20))
@settings(deadline=None)
def test_decode_is_the_inverse_of_encode(specials: tuple[Tokenizer, LlamaVocabulary], text: str) -> None:
    tokenizer, _ = specials  # it has a token for every byte
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_decode_replaces_half_characters_and_hides_control_tokens(smollm2: Tokenizer) -> None:
    halves = smollm2.encode("\U0001f642", add_special=False)
    assert len(halves) > 1
    assert smollm2.decode(halves) == "\U0001f642"
    assert "\ufffd" in smollm2.decode(halves[:1])
    assert smollm2.decode([1, *halves], special=False) == "\U0001f642"
    assert smollm2.decode([1]) == smollm2.token_text(1) == "<|im_start|>"


@pytest.mark.parametrize("token", [-100, -1, 49_152])
def test_a_token_outside_the_vocabulary_is_refused(smollm2: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match=f"Token {token} is not in the vocabulary, which goes from 0 to 49151"):
        smollm2.decode([token])


def test_half_a_surrogate_pair_is_refused(smollm2: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"character 2 is half of a surrogate pair \(U\+D83D\)"):
        smollm2.encode("ab\ud83d")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", r"a tokenizer of the kind 'bert' \(WordPiece, of encoders\), which is not supported; known are: gpt2"),
        ("t5", r"of the kind 't5' \(Unigram, of T5 and of encoders\)"),
        ("rwkv", r"of the kind 'rwkv' \(of RWKV\)"),
        ("plamo2", r"of the kind 'plamo2' \(of PLaMo\)"),
        ("hybriddna", r"of the kind 'hybriddna' \(of models of DNA\)"),
        ("new", "of the kind 'new', which is not supported"),
        ("none", r"has no vocabulary \(tokenizer.ggml.model = 'none'\): take a GGUF that has one"),
    ],
)
def test_other_kinds_of_tokenizers_are_refused_by_name(kind: str, reason: str, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", ["a"], [], {"tokenizer.ggml.model": (ValueType.STRING, kind)})
    with pytest.raises(ModelError, match=reason):
        load_tokenizer(open_gguf(path))


def test_broken_bytes_are_refused(tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "v.gguf", ["a", "<0xZZ>"], [], {"tokenizer.ggml.token_type": (ValueType.INT32, [1, 6])}
    )
    with pytest.raises(FileError, match="token 1 is a byte but its text is '<0xZZ>'"):
        load_tokenizer(open_gguf(path))


def test_importing_the_room_imports_nothing_heavy() -> None:
    """Commands start at once: the libraries come with the first tokenizer or template."""
    code = "import sys, gguflora.tokenizer; print([m for m in ('torch', 'tokenizers', 'jinja2') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
