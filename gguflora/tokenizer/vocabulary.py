"""The vocabulary as the GGUF's metadata states it, checked, with what llama.cpp adds where the file is silent.

Source: llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp; numbers are its lines as vendored in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguflora.errors import FileError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.alphabet import BYTE_TO_CHARACTER
from gguflora.tokenizer.kind import KEY, SPM, Defaults, defaults_of, read_flag, read_kind
from gguflora.tokenizer.pretokenizers import OF_CHARACTERS, PRETOKENIZERS
from gguflora.tokenizer.special_tokens import ROLES, TokenType, find_endings

_log = logging.getLogger(__name__)

_ELEMENTS = {str: "text", int: "whole numbers", (int, float): "numbers"}
_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}  # 2610


@dataclass(frozen=True)
class Vocabulary:
    """Tokens, merges and special tokens of one model. Ids are None where the model has no such token.

    Attributes:
        model: `tokenizer.ggml.model`: llama for SentencePiece, else one of the kinds of BPE.
        pre: `tokenizer.ggml.pre`, for BPE a key of PRETOKENIZERS or OF_CHARACTERS.
        tokens: text of each token, as in the file.
        token_types: a TokenType for each token, with llama.cpp's corrections.
        merges: `left right`, most important first, none twice; those that can't apply are left out. For BPE.
        scores: of each token, the highest merges first. For SentencePiece.
        eot: the end-of-turn token.
        add_bos: whether encoding with `add_special` puts `bos` first; add_eos: and `eos` last.
        eog: every token that stops generation.
        lstrip: special tokens that swallow white space on their left; rstrip: on their right.
        add_space_prefix: whether a text begins with a space, and again after each special token in it.
    """

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    scores: list[float]
    bos: int | None
    eos: int | None
    eot: int | None
    unknown: int | None
    padding: int | None
    add_bos: bool
    add_eos: bool
    eog: frozenset[int]
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    add_space_prefix: bool = False

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token's text."""
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))


def read_vocabulary(gguf: GgufFile) -> Vocabulary:
    """Read the vocabulary of an opened GGUF.

    Raises:
        FileError: the file has no tokens or merges, or they contradict each other or the weights.
        ModelError: a kind of tokenizer, or a `pre`, that is not supported.
    """
    model, pre = read_kind(gguf)
    defaults = defaults_of(model, pre)
    tokens = _tokens(gguf)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        raise FileError(f"{gguf.path} is not valid: {len(tokens) - len(ids)} of its tokens stand in it twice.")
    given = _special_ids(gguf, len(tokens), defaults)
    endings = find_endings(ids, _token_types(gguf, tokens), given)
    add_bos = read_flag(gguf, "add_bos_token", defaults.add_bos) or defaults.always_bos
    add_eos = read_flag(gguf, "add_eos_token", False)
    for name, add in (("bos", add_bos), ("eos", add_eos)):
        if add and given[name] is None:
            raise FileError(f"{gguf.path} is not valid: it asks for a {name} token in every text but has none.")
    lstrip, rstrip = _stripping(gguf, pre, ids, endings.token_types)
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        token_types=endings.token_types,
        merges=_merges(gguf, ids, pre) if model != SPM else [],
        scores=_scores(gguf, len(tokens)) if model == SPM else [],
        bos=given["bos"],
        eos=given["eos"],
        eot=endings.eot,
        unknown=given["unknown"],
        padding=given["padding"],
        add_bos=add_bos,
        add_eos=add_eos,
        eog=endings.eog,
        lstrip=lstrip,
        rstrip=rstrip,
        add_space_prefix=read_flag(gguf, "add_space_prefix", True) if model == SPM else False,  # 2432
    )


def _array(gguf: GgufFile, name: str, kind: type | tuple[type, ...]) -> list[Any] | None:
    """The metadata array tokenizer.ggml.<name>; None where the file has none."""
    key = KEY + name
    if key not in gguf.metadata:
        return None
    values = gguf.metadata[key]
    if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
        wanted = _ELEMENTS[kind]
        raise FileError(f"{gguf.path} is not valid: {key} is not an array of {wanted}.")
    return values


def _tokens(gguf: GgufFile) -> list[str]:
    tokens = _array(gguf, "tokens", str)
    if not tokens:
        raise FileError(f"{gguf.path} has no tokens ({KEY}tokens): take a GGUF of the whole model.")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != len(tokens):
        raise FileError(
            f"{gguf.path} is not valid: it has {len(tokens)} tokens, but its tensor token_embd.weight has "
            f"{embedding.shape[0]} rows."
        )
    return [text or f"[EMPTY_{token}]" for token, text in enumerate(tokens)]  # 2514


def _token_types(gguf: GgufFile, tokens: list[str]) -> list[int]:
    types = _array(gguf, "token_type", int)
    if types is None:
        return [TokenType.NORMAL] * len(tokens)
    if len(types) < len(tokens):
        raise FileError(f"{gguf.path} is not valid: it has {len(tokens)} tokens, but {len(types)} token types.")
    types = types[: len(tokens)]
    for token in np.flatnonzero(np.array(types) == TokenType.BYTE).tolist():
        if not re.fullmatch("<0x[0-9A-Fa-f]{2}>", tokens[token]):
            raise FileError(f"{gguf.path} is not valid: token {token} is a byte but its text is {tokens[token]!r}.")
    return types


def _scores(gguf: GgufFile, n_tokens: int) -> list[float]:
    """As float32, which is what llama.cpp compares; all 0 where the file has none (2475)."""
    scores = _array(gguf, "scores", (int, float))
    if scores is None:
        return [0.0] * n_tokens
    if len(scores) < n_tokens:
        raise FileError(f"{gguf.path} is not valid: it has {n_tokens} tokens, but {len(scores)} scores.")
    exact = np.array(scores[:n_tokens], np.float32)
    if np.isnan(exact).any():
        token = int(np.isnan(exact).argmax())
        raise FileError(f"{gguf.path} is not valid: the score of token {token} is not a number.")
    return [float(score) for score in exact]


def _special_ids(gguf: GgufFile, n_tokens: int, defaults: Defaults) -> dict[str, int | None]:
    """The ids that the file states for each role, or llama.cpp's defaults where those exist in this vocabulary."""
    found: dict[str, int | None] = {"bos": defaults.bos, "eos": defaults.eos, "unknown": defaults.unknown}
    found = {role: token if token is not None and token < n_tokens else None for role, token in found.items()}
    for role in ("bos", "eos", "unknown", "padding", *ROLES):
        for name in (role, _OLD_KEYS.get(role, role)):
            stated = _special_id(gguf, f"{KEY}{name}_token_id", n_tokens)
            found[role] = found.get(role) if stated is None else stated
    return found


def _special_id(gguf: GgufFile, key: str, n_tokens: int) -> int | None:
    token = gguf.metadata.get(key)
    if token is None:
        return None
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < n_tokens:
        raise FileError(f"{gguf.path} is not valid: {key} is {token!r}, but its tokens go from 0 to {n_tokens - 1}.")
    return token


def _merges(gguf: GgufFile, ids: Mapping[str, int], pre: str) -> list[str]:
    """The merges that can apply: both parts can exist, the result is a token; of equal ones the first (2027).

    Where tokens are characters all of them can: a part that is no token becomes its bytes' tokens.
    """
    merges = _array(gguf, "merges", str)
    if merges is None and pre in PRETOKENIZERS and not PRETOKENIZERS[pre].needs_merges:
        return []
    if merges is None:
        raise FileError(f"{gguf.path} has no merges ({KEY}merges): take a GGUF of the whole model.")
    if pre in OF_CHARACTERS:
        return list(dict.fromkeys(merges))
    parts = ids.keys() | set(BYTE_TO_CHARACTER)
    kept: dict[str, None] = {}
    for merge in merges:
        left, _, right = split_merge(merge)
        if left in parts and right in parts and left + right in ids:
            kept[merge] = None
    dropped = len(set(merges)) - len(kept)
    if dropped:
        _log.warning("%s: %d of its %d merges name unknown tokens and are left out.", gguf.path, dropped, len(merges))
    return list(kept)


def split_merge(merge: str) -> tuple[str, str, str]:
    """Left part, space, right part. The left part has at least one character, which may be a space (2020)."""
    first, (rest, space, right) = merge[:1], merge[1:].partition(" ")
    return first + rest, space, right


def _stripping(
    gguf: GgufFile, pre: str, ids: Mapping[str, int], types: list[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """Which special tokens swallow white space; files don't say, so llama.cpp goes by names (3069)."""
    name = str(gguf.metadata.get("general.name", "")).lower()
    if pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code"):
        return frozenset(ids[text] for text in ("<mask>",) if text in ids), frozenset()
    if "phi-3" in name or "phi3" in name:
        special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        keep = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset(), frozenset(i for i, kind in enumerate(types) if kind in special and i not in keep)
    if "modern-bert" in name:
        return frozenset(ids[text] for text in ("[MASK]",) if text in ids), frozenset()
    return frozenset(), frozenset()
