"""Which kind of tokenizer a GGUF says it has, and what llama.cpp assumes of it where the file is silent.

Source: llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp; numbers are its lines as vendored in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.pretokenizers import DEFAULT, OF_CHARACTERS, PRETOKENIZERS

_log = logging.getLogger(__name__)

KEY = "tokenizer.ggml."

SPM = "llama"
_GEMMA4, _WHITESPACE = "gemma4", "whitespace"
_KINDS = ("gpt2", SPM, _GEMMA4, _WHITESPACE)
_REFUSED = {
    "bert": "WordPiece, of encoders",
    "t5": "Unigram, of T5 and of encoders",
    "rwkv": "of RWKV",
    "plamo2": "of PLaMo",
    "hybriddna": "of models of DNA",
}


@dataclass(frozen=True)
class Defaults:
    """What is assumed where the file says nothing; `always_bos`: BOS is added whatever it says."""

    bos: int | None
    eos: int | None
    unknown: int | None
    add_bos: bool
    always_bos: bool = False


def read_kind(gguf: GgufFile) -> tuple[str, str]:
    """`tokenizer.ggml.model` and `tokenizer.ggml.pre`, as llama.cpp takes them.

    Raises:
        FileError: the file has no tokenizer.
        ModelError: a kind of tokenizer, or a `pre`, that is not supported.
    """
    model = _model(gguf)
    return model, _pre(gguf, model)


def defaults_of(model: str, pre: str) -> Defaults:
    """What llama.cpp assumes for a kind of tokenizer."""
    if model == SPM:
        return Defaults(bos=1, eos=2, unknown=0, add_bos=True)  # 1972, 2430
    if pre in OF_CHARACTERS:
        token = None if model == _GEMMA4 else 11  # 2141, 2032
        return Defaults(bos=token, eos=token, unknown=None, add_bos=False, always_bos=OF_CHARACTERS[pre].always_bos)
    row = PRETOKENIZERS[pre]
    return Defaults(bos=11 if row.has_default_bos else None, eos=11, unknown=None, add_bos=row.add_bos)  # 2032


def read_flag(gguf: GgufFile, name: str, default: bool) -> bool:
    """The metadata tokenizer.ggml.<name>.

    Raises:
        FileError: it is not true or false.
    """
    value = gguf.metadata.get(KEY + name, default)
    if not isinstance(value, bool):
        raise FileError(f"{gguf.path} is not valid: {KEY}{name} is {value!r}, not true or false.")
    return value


def _model(gguf: GgufFile) -> str:
    model = str(gguf.metadata.get(KEY + "model", ""))
    if not model:
        raise FileError(f"{gguf.path} has no tokenizer (no {KEY}model): take a GGUF of the whole model.")
    if model in ("none", "no_vocab"):
        raise ModelError(f"{gguf.path} has no vocabulary ({KEY}model = {model!r}): take a GGUF that has one.")
    if model not in _KINDS:
        of = f" ({_REFUSED[model]})" if model in _REFUSED else ""
        raise ModelError(
            f"{gguf.path} has a tokenizer of the kind {model!r}{of}, which is not supported; known are: "
            f"{', '.join(_KINDS)}."
        )
    if model == _WHITESPACE and read_flag(gguf, "normalizer.lowercase", False):
        raise ModelError(f"{gguf.path} has a tokenizer that makes capital letters small, which is not supported.")
    return model


def _pre(gguf: GgufFile, model: str) -> str:
    if model == _GEMMA4:
        return "gemma4"  # whatever the file says (2149)
    pre = str(gguf.metadata.get(KEY + "pre", ""))
    if model == SPM:  # only BPE cuts words (2154)
        return pre
    if not pre:
        _log.warning(
            "%s does not say how its tokenizer cuts words (no %spre): taking llama.cpp's default, "
            "which may fit the model badly.",
            gguf.path,
            KEY,
        )
        pre = DEFAULT
    known = PRETOKENIZERS | OF_CHARACTERS
    if pre not in known:
        raise ModelError(
            f"{gguf.path} has {KEY}pre = {pre!r}, which is not supported; known are: {', '.join(sorted(known))}."
        )
    if (pre == "whitespace") != (model == _WHITESPACE):  # llama.cpp ends its process at two spaces (4183)
        raise ModelError(
            f"{gguf.path} has {KEY}pre = {pre!r} with {KEY}model = {model!r}, which is not supported: whitespace goes "
            "with whitespace alone."
        )
    return pre
