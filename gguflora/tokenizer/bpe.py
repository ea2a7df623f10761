"""Byte-level BPE: text without special tokens -> ids, through the `tokenizers` library set up as llama.cpp works.

Source: llm_tokenizer_bpe_session::tokenize and token_to_piece in llama.cpp's src/llama-vocab.cpp. There is no
normalisation: the bytes of the text are what is tokenized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguflora.tokenizer.alphabet import BYTE_TO_CHARACTER, decoded
from gguflora.tokenizer.pretokenizers import PreTokenizer, as_of_unicode_15
from gguflora.tokenizer.vocabulary import Vocabulary, split_merge

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Sequence


@dataclass(frozen=True)
class BpeEngine:
    """Encodes and decodes ordinary text.

    Attributes:
        tokenizer: ids from `size` on stand for bytes that have no token.
        size: number of tokens in the vocabulary.
    """

    tokenizer: Tokenizer
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which no special token is looked for. Bytes without a token vanish, as in llama.cpp."""
        return [token for token in self.tokenizer.encode(text, add_special_tokens=False).ids if token < self.size]

    def token_bytes(self, text: str) -> bytes:
        """The bytes that the ordinary token `text` stands for."""
        return decoded(text)


def build_bpe(vocabulary: Vocabulary, row: PreTokenizer) -> BpeEngine:
    """Set up the engine; takes about 0.1 s for 49k tokens.

    Args:
        vocabulary: the model's.
        row: of its `pre`.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    size = len(vocabulary.tokens)
    # The library would drop a byte without a token before merging and so join its neighbours; llama.cpp drops it after.
    absent = [character for character in BYTE_TO_CHARACTER if character not in vocabulary.ids]
    ids = vocabulary.ids | {character: size + place for place, character in enumerate(absent)}
    merges = [(left, right) for left, _, right in map(split_merge, vocabulary.merges)]
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=row.ignore_merges))
    tokenizer.pre_tokenizer = _word_cutter(row)
    return BpeEngine(tokenizer, size)


def _word_cutter(row: PreTokenizer) -> Sequence:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    cuts = [Split(Regex(as_of_unicode_15(pattern)), "isolated") for pattern in row.patterns]
    return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
