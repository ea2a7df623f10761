"""A model's own tokenizer: text -> ids exactly as llama_tokenize gives them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gguflora.errors import DataError, ModelError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.bpe import build_bpe
from gguflora.tokenizer.partition import SpecialToken, partition, special_tokens
from gguflora.tokenizer.special_tokens import TokenType
from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary


class Engine(Protocol):
    """What differs between kinds of tokenizers: ordinary text and ordinary tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of text in which no special token is looked for."""

    def token_bytes(self, text: str) -> bytes:
        """The bytes that the ordinary token `text` stands for."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Make one with `load_tokenizer`."""

    vocabulary: Vocabulary
    engine: Engine
    specials: tuple[SpecialToken, ...]

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`.

        Args:
            text: may be empty.
            add_special: put BOS first and EOS last where the model wants them.
            parse_special: whether text such as `<|im_end|>` becomes the control token. User-defined tokens are
                found either way.

        Raises:
            DataError: the text holds half of a surrogate pair, which is no character.
        """
        _check_encodable(text)
        tokens: list[int] = []
        if add_special and self.vocabulary.add_bos and self.vocabulary.bos is not None:
            tokens.append(self.vocabulary.bos)
        for piece in partition(text, self.specials, parse_special=parse_special):
            if isinstance(piece, int):
                tokens.append(piece)
            else:
                tokens.extend(self.engine.encode(piece))
        if add_special and self.vocabulary.add_eos and self.vocabulary.eos is not None:
            tokens.append(self.vocabulary.eos)
        return tokens

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of `tokens`: their bytes joined; bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: (T,)
            special: whether control tokens are written out or left out.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        return b"".join(self.token_bytes(token, special=special) for token in tokens).decode(errors="replace")

    def token_bytes(self, token: int, *, special: bool = True) -> bytes:
        """The bytes of one token, which may be part of a character (llama_token_to_piece).

        Raises:
            DataError: the token is not in the vocabulary.
        """
        text = self.token_text(token)
        match self.vocabulary.token_types[token]:
            case TokenType.CONTROL | TokenType.UNKNOWN:
                return text.encode() if special else b""
            case TokenType.USER_DEFINED:
                return text.encode()
            case TokenType.BYTE:
                return bytes.fromhex(text[3:5])
            case TokenType.NORMAL:
                return self.engine.token_bytes(text)
            case _:
                return b""

    def token_text(self, token: int) -> str:
        """The token as the file writes it, byte alphabet and all.

        Raises:
            DataError: the token is not in the vocabulary.
        """
        if not 0 <= token < len(self.vocabulary.tokens):
            raise DataError(
                f"Token {token} is not in the vocabulary, which goes from 0 to {len(self.vocabulary.tokens) - 1}."
            )
        return self.vocabulary.tokens[token]


def load_tokenizer(gguf: GgufFile) -> Tokenizer:
    """Build the tokenizer that the file describes.

    Raises:
        FileError: its vocabulary is missing or contradicts itself.
        ModelError: its kind of tokenizer is not supported.
    """
    vocabulary = read_vocabulary(gguf)
    return Tokenizer(vocabulary, _engine(gguf, vocabulary), special_tokens(vocabulary))


def _engine(gguf: GgufFile, vocabulary: Vocabulary) -> Engine:
    match vocabulary.model:
        case "gpt2":
            return build_bpe(vocabulary)
        case other:
            raise ModelError(f"{gguf.path} has a tokenizer of the kind {other!r}, which is not supported yet.")


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text can't be tokenized: character {error.start} is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X}); remove it."
        ) from None
