"""BPE over characters: text without special tokens -> ids, where a vocabulary's tokens are text as it stands.

Source: llm_tokenizer_bpe_session::tokenize with byte_encode = false, llm_tokenizer_whitespace_session and
token_to_piece in llama.cpp's src/llama-vocab.cpp. Words are whole lines, or what white space leaves. A part that the
merges end with and that is no token becomes its bytes' tokens; a byte without a token vanishes. (The `tokenizers`
library knows no merge of parts that are no tokens, and turns characters into bytes before it merges, not after.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gguflora.tokenizer.alphabet import decoded
from gguflora.tokenizer.merging import PieceEncoder, merge, piece_encoder
from gguflora.tokenizer.pretokenizers import SPACE, CharacterPreTokenizer
from gguflora.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class CharacterBpeEngine:
    """Encodes and decodes ordinary text.

    Attributes:
        row: how words are cut.
        ids: id of each token's text.
        pieces: encodes a word.
    """

    row: CharacterPreTokenizer
    ids: Mapping[str, int]
    pieces: PieceEncoder

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which no special token is looked for."""
        tokens: list[int] = []
        for word in self.row.words.findall(text.replace(" ", self.row.space)):
            whole = self.ids.get(word) if self.row.whole_line_ends and word[0] == "\n" else None
            tokens += self.pieces.encode(word) if whole is None else [whole]
        return tokens

    def token_bytes(self, text: str) -> bytes:
        """The bytes that the ordinary token `text` stands for."""
        return text.replace(SPACE, " ").encode() if self.row.space == SPACE else decoded(text)


def build_character_bpe(vocabulary: Vocabulary, row: CharacterPreTokenizer) -> CharacterBpeEngine:
    """Set up the engine; takes about 0.4 s for 514k merges.

    Args:
        vocabulary: the model's.
        row: of its `pre`.
    """
    ids = vocabulary.ids
    ranks = dict(zip(vocabulary.merges, range(len(vocabulary.merges)), strict=True))

    def piece_ids(piece: str) -> tuple[int, ...]:
        return tuple(token for part in merge(piece, ranks, between=" ") for token in _part_ids(part, ids))

    return CharacterBpeEngine(row, ids, piece_encoder(_neighbours(vocabulary.merges), piece_ids))


def _neighbours(merges: Iterable[str]) -> frozenset[str]:
    """Every two characters at which a merge joins its parts; the first space behind a character divides them (2115)."""
    return frozenset(
        merge[at - 1] + merge[at + 1] for merge in merges if 0 < (at := merge.find(" ", 1)) < len(merge) - 1
    )


def _part_ids(part: str, ids: Mapping[str, int]) -> Iterator[int]:
    token = ids.get(part)
    if token is not None:
        yield token
        return
    for byte in part.encode():
        if (of_byte := ids.get(f"<0x{byte:02X}>")) is not None:
            yield of_byte
