"""SentencePiece as llama.cpp has it: text without special tokens -> ids, by merging neighbours, best score first.

Source: llm_tokenizer_spm_session, byte_to_token and token_to_piece in llama.cpp's src/llama-vocab.cpp. A space is
written U+2581; nothing else is changed: no normalisation, no white space removed. Two parts merge where both together
are a token. A character that is in no token becomes its bytes' tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gguflora.errors import DataError
from gguflora.tokenizer.merging import PieceEncoder, merge, piece_encoder
from gguflora.tokenizer.pretokenizers import SPACE
from gguflora.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class SpmEngine:
    """Encodes and decodes ordinary text; `pieces` encodes text in which spaces are U+2581."""

    pieces: PieceEncoder

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which no special token is looked for.

        Raises:
            DataError: the vocabulary has no token for a character nor for its bytes.
        """
        return self.pieces.encode(text.replace(" ", SPACE))

    def token_bytes(self, text: str) -> bytes:
        """The bytes that the ordinary token `text` stands for."""
        return text.replace(SPACE, " ").encode()


def build_spm(vocabulary: Vocabulary) -> SpmEngine:
    """Set up the engine; takes about 0.2 s for 262k tokens."""
    ids = vocabulary.ids
    costs = dict(zip(vocabulary.tokens, (-np.array(vocabulary.scores)).tolist(), strict=True))

    def piece_ids(piece: str) -> tuple[int, ...]:
        return tuple(token for symbol in merge(piece, costs) for token in _symbol_ids(symbol, ids))

    return SpmEngine(piece_encoder(neighbours(vocabulary.tokens), piece_ids))


def neighbours(tokens: Sequence[str]) -> frozenset[str]:
    """Every two characters that stand side by side in some token; in numpy, since there are millions.

    Args:
        tokens: none is empty.
    """
    characters = np.frombuffer("".join(tokens).encode("utf-32-le"), "<u4")
    pairs = characters[:-1].astype(np.uint64) << 32 | characters[1:]
    borders = np.cumsum([len(token) for token in tokens])[:-1] - 1  # where one token ends and the next begins
    found = np.unique(np.delete(pairs, borders))
    text = np.stack([found >> 32, found & 0xFFFFFFFF], axis=1).astype("<u4").tobytes().decode("utf-32-le")
    return frozenset(text[at : at + 2] for at in range(0, len(text), 2))


def _symbol_ids(symbol: str, ids: Mapping[str, int]) -> list[int]:
    """The token of a part that `merge` left; where it has none, and is therefore one character, its bytes' tokens."""
    token = ids.get(symbol)
    if token is not None:
        return [token]
    found = [ids.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
    tokens = [token for token in found if token is not None]
    if len(tokens) < len(found):
        raise DataError(
            f"The text can't be tokenized: the model has no token for the character {symbol!r} "
            f"(U+{ord(symbol):04X}) nor for its bytes; leave it out."
        )
    return tokens
