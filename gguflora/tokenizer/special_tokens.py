"""Which tokens end a turn or the text: llama.cpp's rules, which go by ids in the file and by the tokens' texts.

Numbers are lines of llama.cpp's src/llama-vocab.cpp, as vendored in llama-cpp-python 0.3.36
(llama_vocab::impl::load).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (llama_token_type in include/llama.h)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Endings:
    """What the rules gave.

    Attributes:
        eot: the end-of-turn token.
        eog: every token that stops generation.
        token_types: the file's types with llama.cpp's corrections.
    """

    eot: int | None
    eog: frozenset[int]
    token_types: list[int]


# The role's key in the file (tokenizer.ggml.<role>_token_id): texts that a token of this role has where the file
# does not say. llama.cpp takes the first that its hash map happens to give; here the order of the list decides, most
# specific first, which can differ only where a vocabulary has two of them and no key.
_ROLE_TEXTS: dict[str, tuple[str, ...]] = {
    "eot": (  # 2693
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "<|end_of_text|>",
        "<|endoftext|>",
    ),
    "eom": ("<|eom_id|>",),  # 2717
    "fim_pre": (  # 2731
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (  # 2752
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (  # 2773
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),  # 2794
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),  # 2812
    "fim_sep": ("<|file_sep|>",),  # 2830
}

ROLES = tuple(_ROLE_TEXTS)

_EOG_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # 2876, 2944

_EOG_TEXTS = (  # 2892
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)

_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # 2932


def find_endings(ids: Mapping[str, int], token_types: Sequence[int], given: Mapping[str, int | None]) -> Endings:
    """Work out the end-of-turn token, the end-of-generation set and the corrected types.

    Args:
        ids: id of each token's text.
        token_types: one for each token, as in the file.
        given: ids that the file states, or has by default, for `eos` and the ROLES; None or absent where it has none.
    """
    types = list(token_types)
    roles = {role: token for role, token in given.items() if token is not None}
    for role, texts in _ROLE_TEXTS.items():
        found = next((ids[text] for text in texts if text in ids), None)
        if role not in roles and found is not None:
            roles[role] = found
            types[found] = TokenType.CONTROL
    by_text = {ids[text] for text in _EOG_TEXTS if text in ids}
    for token in by_text:
        types[token] = TokenType.CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    eog = by_text | {roles[role] for role in _EOG_ROLES if role in roles}
    _remove_exceptions(eog, types, ids)
    return Endings(roles.get("eot"), frozenset(eog), types)


def _remove_exceptions(eog: set[int], types: list[int], ids: Mapping[str, int]) -> None:
    """Take out texts that end the text in one family of models and are ordinary in another."""

    def ends(text: str) -> bool:
        return ids.get(text) in eog

    calls = ends("<|call|>") or ends("<|calls|>")
    if calls and (ends("<|return|>") or ends("<|flush|>")) and ends("<|end|>"):  # 2960: harmony, solar-open
        eog.remove(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED
    if (ends("<|tool_response>") or ends("<|plamo:eos|>")) and ends("</s>"):  # 3004: gemma4, plamo
        eog.remove(ids["</s>"])
        types[ids["</s>"]] = TokenType.NORMAL
