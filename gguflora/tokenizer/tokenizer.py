"""A model's own tokenizer: text -> ids exactly as llama_tokenize gives them, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gguflora.errors import DataError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.bpe import build_bpe
from gguflora.tokenizer.character_bpe import build_character_bpe
from gguflora.tokenizer.partition import SpecialToken, Starts, by_start, partition, possible_in, special_tokens
from gguflora.tokenizer.pretokenizers import OF_CHARACTERS, PRETOKENIZERS
from gguflora.tokenizer.special_tokens import TokenType
from gguflora.tokenizer.spm import build_spm
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

    def __reduce__(self) -> tuple[Callable[[Vocabulary], Tokenizer], tuple[Vocabulary]]:
        """Pickled as its vocabulary: the engine is built again."""
        return build_tokenizer, (self.vocabulary,)

    @functools.cached_property
    def _starts(self) -> Starts:
        return by_start(self.specials)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True, continues: bool = False
    ) -> list[int]:
        """Ids of `text`.

        Args:
            text: may be empty.
            add_special: put BOS first and EOS last where the model wants them.
            parse_special: whether text such as `<|im_end|>` becomes the control token. User-defined tokens are
                found either way.
            continues: the text goes on from text before it, so no space is put in front, even where the model wants
                one before every text (SentencePiece).

        Raises:
            DataError: the text holds half of a surrogate pair, which is no character, or a character that the model
                has no tokens for.
        """
        _check_encodable(text)
        tokens: list[int] = []
        begins = not continues  # after a special token a text begins anew (3440)
        if add_special and self.vocabulary.add_bos and self.vocabulary.bos is not None:
            tokens.append(self.vocabulary.bos)
        for piece in partition(text, possible_in(text, self._starts), parse_special=parse_special):
            if isinstance(piece, int):
                tokens.append(piece)
                begins = True
            else:
                prefix = " " if begins and self.vocabulary.add_space_prefix else ""
                tokens.extend(self.engine.encode(prefix + piece))
                begins = False
        if add_special and self.vocabulary.add_eos and self.vocabulary.eos is not None:
            tokens.append(self.vocabulary.eos)
        return tokens

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of `tokens`: their bytes joined; bytes that are not UTF-8 become U+FFFD.

        A space that `encode` put before a text is kept, as in LlamaModel.detokenize: tokens may come from the middle
        of a text. (llama_detokenize drops it where the first token is not BOS.)

        Args:
            tokens: (T,)
            special: whether control tokens are written out or left out.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        return b"".join(self.token_bytes(token, special=special) for token in tokens).decode(errors="replace")

    def controls_in(self, text: str) -> list[str]:
        """The control tokens that `text` spells, as texts: those that only `parse_special` finds."""
        possible = possible_in(text, self._starts)
        return [special.text for special in possible if not special.always and special.text in text]

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
    return build_tokenizer(read_vocabulary(gguf))


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary."""
    return Tokenizer(vocabulary, _engine(vocabulary), special_tokens(vocabulary))


def _engine(vocabulary: Vocabulary) -> Engine:
    if vocabulary.model == "llama":
        return build_spm(vocabulary)
    if vocabulary.pre in OF_CHARACTERS:
        return build_character_bpe(vocabulary, OF_CHARACTERS[vocabulary.pre])
    return build_bpe(vocabulary, PRETOKENIZERS[vocabulary.pre])


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text can't be tokenized: character {error.start} is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X}); remove it."
        ) from None
