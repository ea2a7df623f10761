"""A vocabulary is read as llama.cpp reads it, and refused where it contradicts itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.errors import FileError, ModelError
from gguflora.gguf import ValueType, f32, open_gguf, write_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import Vocabulary, load_tokenizer, read_vocabulary
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.vocabularies import spelled, write_vocabulary

BYTES = [spelled(chr(byte)) for byte in range(128)]


def _read(
    path: Path, more: dict[str, Value], tokens: list[str] | None = None, merges: list[str] | None = None
) -> Vocabulary:
    return read_vocabulary(open_gguf(write_vocabulary(path, tokens or BYTES, merges or [], more)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.gguf"


def test_smollm2(smollm2_path: Path) -> None:
    """The numbers that the file's metadata holds (read with gguf-dump), and llama.cpp's end-of-generation set."""
    vocabulary = read_vocabulary(open_gguf(smollm2_path))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "smollm")
    assert (len(vocabulary.tokens), len(vocabulary.token_types), len(vocabulary.merges)) == (49_152, 49_152, 48_900)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.unknown, vocabulary.padding) == (1, 2, 0, 2)
    assert vocabulary.tokens[2] == "<|im_end|>"
    assert vocabulary.eot == 2
    assert not vocabulary.add_bos
    assert not vocabulary.add_eos
    assert vocabulary.eog == LlamaVocabulary(smollm2_path).eog()


@pytest.mark.parametrize(
    "texts",
    [
        ["<|im_end|>"],
        ["<|eom_id|>", "<|eot_id|>", "ordinary"],
        ["<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"],
        ["<|flush|>", "<|calls|>", "<|end|>"],
        ["<|call|>", "<|end|>"],
        ["<turn|>", "<|tool_response>", "</s>", "<eos>"],
        ["</s>", "[e~["],
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        ["<PRE>", "<SUF>", "<MID>", "<EOT>", "[PAD]", "<reponame>", "[EOS]", "_<EOT>x"],
        ["<end_of_turn>", "<end_of_utterance>"],
        ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cfim\u2581begin\uff5c>"],
    ],
    ids=lambda texts: texts[0],
)
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_end_of_generation_is_llama_cpps(path: Path, texts: list[str], kind: int) -> None:
    """By their texts, whatever their type in the file; the corrected types show in how text is cut."""
    types = [1] * len(BYTES) + [kind] * len(texts)
    write_vocabulary(path, BYTES + texts, [], {"tokenizer.ggml.token_type": (ValueType.INT32, types)})
    ours, theirs = load_tokenizer(open_gguf(path)), LlamaVocabulary(path)
    assert ours.vocabulary.eog == theirs.eog()
    for parse_special in (True, False):
        text = " ".join(texts)
        assert ours.encode(text, parse_special=parse_special) == theirs.tokenize(text, parse_special=parse_special)
    for token in range(len(types)):
        assert ours.token_bytes(token, special=False) == theirs.token_bytes(token, special=False)


def test_ids_in_the_file_come_before_texts(path: Path) -> None:
    more: dict[str, Value] = {
        f"tokenizer.ggml.{role}_token_id": (ValueType.UINT32, number)
        for number, role in enumerate(
            ["eot", "eom", "fim_pad", "fim_rep", "fim_sep", "prefix", "padding", "unknown"], 10
        )
    }
    texts = ["<|im_end|>", "<|fim_pad|>", "<|fim_repo|>", "<|file_sep|>", "<|fim_prefix|>"]
    vocabulary = _read(path, more, tokens=BYTES + texts)
    assert (vocabulary.eot, vocabulary.padding, vocabulary.unknown) == (10, 16, 17)
    assert vocabulary.eog == LlamaVocabulary(path).eog() == {0, 10, 11, 12, 13, 14, 128}


def test_of_two_end_of_turn_texts_the_more_specific_is_taken(path: Path) -> None:
    assert _read(path, {}, tokens=[*BYTES, "<|endoftext|>", "<|im_end|>"]).eot == 129


@pytest.mark.parametrize(
    ("pre", "bos", "add_bos"),
    [("gpt-2", 11, False), ("llama-bpe", 11, True), ("glm4", None, False), ("tekken", 11, True)],
)
def test_what_llama_cpp_assumes_where_the_file_is_silent(path: Path, pre: str, bos: int | None, add_bos: bool) -> None:
    metadata: dict[str, Value] = {
        "general.architecture": (ValueType.STRING, "llama"),
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, pre),
        "tokenizer.ggml.tokens": (ValueType.STRING, BYTES),
        "tokenizer.ggml.merges": (ValueType.STRING, ["a b"]),
    }
    write_gguf(path, metadata, [])
    tokenizer = load_tokenizer(open_gguf(path))
    assert (tokenizer.vocabulary.bos, tokenizer.vocabulary.eos) == (bos, 11)
    assert tokenizer.vocabulary.add_bos is add_bos
    assert tokenizer.encode("ab c") == LlamaVocabulary(path).tokenize("ab c")


def test_an_absent_pre_is_llama_cpps_default_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vocabulary = _read(path, {"tokenizer.ggml.pre": (ValueType.STRING, "")})
    assert vocabulary.pre == "default"
    assert "does not say how its tokenizer cuts words" in caplog.text


def test_an_unknown_pre_is_refused_with_the_known_ones(path: Path) -> None:
    with pytest.raises(ModelError, match=r"pre = 'qwen9', which is not supported; known are: .*qwen2, .*smollm"):
        _read(path, {"tokenizer.ggml.pre": (ValueType.STRING, "qwen9")})


def test_merges_of_unknown_tokens_are_dropped_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    merges = ["a b", "a c", "ab d", "zz a", "broken", "a b"]
    with caplog.at_level(logging.WARNING):
        vocabulary = _read(path, {}, tokens=[*BYTES, "ab", "zza"], merges=merges)
    assert vocabulary.merges == ["a b"]
    assert "4 of its 6 merges name unknown tokens" in caplog.text


def test_no_warning_without_reason(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _read(path, {}, tokens=[*BYTES, "ab"], merges=["a b", "a b"])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("bos_token_id", (ValueType.UINT32, 128), "bos_token_id is 128, but its tokens go from 0 to 127"),
        ("eot_token_id", (ValueType.INT32, -1), "eot_token_id is -1"),
        ("eos_token_id", (ValueType.STRING, "2"), "eos_token_id is '2'"),
        ("add_bos_token", (ValueType.UINT32, 1), "add_bos_token is 1, not true or false"),
        ("tokens", (ValueType.STRING, ["a", "b", "a"]), "1 of its tokens stand in it twice"),
        ("tokens", (ValueType.STRING, []), "has no tokens"),
        ("tokens", (ValueType.INT32, [1, 2]), "tokens is not an array of text"),
        ("token_type", (ValueType.INT32, [1]), "it has 128 tokens, but 1 token types"),
        ("token_type", (ValueType.STRING, ["a"]), "token_type is not an array of whole numbers"),
        ("merges", (ValueType.STRING, "a b"), "merges is not an array of text"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(path: Path, key: str, value: Any, reason: str) -> None:
    with pytest.raises(FileError, match=reason):
        _read(path, {f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    ("absent", "reason"), [("tokens", "has no tokens"), ("merges", "has no merges"), ("model", "has no tokenizer")]
)
def test_a_file_without_a_vocabulary_is_refused(path: Path, absent: str, reason: str) -> None:
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ValueType.STRING, BYTES),
        "tokenizer.ggml.merges": (ValueType.STRING, ["a b"]),
    }
    del metadata[f"tokenizer.ggml.{absent}"]
    write_gguf(path, metadata, [])
    with pytest.raises(FileError, match=reason):
        read_vocabulary(open_gguf(path))


def test_bos_in_every_text_needs_a_bos_token(path: Path) -> None:
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, "glm4"),
        "tokenizer.ggml.tokens": (ValueType.STRING, BYTES),
        "tokenizer.ggml.merges": (ValueType.STRING, []),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
    }
    write_gguf(path, metadata, [])
    with pytest.raises(FileError, match="asks for a bos token in every text but has none"):
        read_vocabulary(open_gguf(path))


def test_the_embedding_must_have_a_row_for_each_token(path: Path) -> None:
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ValueType.STRING, BYTES),
        "tokenizer.ggml.merges": (ValueType.STRING, []),
    }
    write_gguf(path, metadata, [f32("token_embd.weight", np.zeros((130, 4), np.float32))])
    with pytest.raises(FileError, match=r"128 tokens, but its tensor token_embd.weight has 130 rows"):
        read_vocabulary(open_gguf(path))
