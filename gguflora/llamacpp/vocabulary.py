"""Text to tokens and back, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes as c
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguflora.errors import UsageError

Tokens = Sequence[int] | npt.NDArray[np.integer]

_BEYOND_UNICODE = re.compile(rb"[\xf5-\xf7][\x80-\xbf]{3}|\xf4[\x90-\xbf][\x80-\xbf]{2}")
"""What src/unicode.cpp reads as one character and then throws at, in C++, where nothing catches it. Other bytes that
are no UTF-8 it replaces."""


class Vocabulary:
    """The vocabulary of a loaded model; valid as long as that is.

    Args:
        library: from `library.load`.
        model: address of the llama_model.
    """

    def __init__(self, library: c.CDLL, model: int) -> None:
        self._library = library
        self._address = library.llama_model_get_vocab(model)
        self.size: int = library.llama_vocab_n_tokens(self._address)

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        """Turn UTF-8 into tokens (llama_tokenize in include/llama.h).

        Raises:
            UsageError: the text is too long for llama.cpp's 32-bit counts, or would end the process.
        """
        if found := _BEYOND_UNICODE.search(text):
            raise UsageError(
                f"the bytes {found[0].hex(' ')} at {found.start()} stand for a character beyond U+10FFFF, at which "
                "llama.cpp aborts; correct the text."
            )
        room = len(text) + 2  # a token for every byte, BOS and EOS
        for _ in range(2):
            buffer = (c.c_int32 * room)()
            count = self._library.llama_tokenize(
                self._address, text, len(text), buffer, room, add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            room = -count  # a space put in front, or text that needs several tokens a byte
        raise UsageError(f"llama.cpp can't turn a text of {len(text)} bytes into tokens: give it in parts.")

    def piece(self, token: int, special: bool) -> bytes:
        """Give the bytes of one token; without `special` a control token has none."""
        room = 64  # most tokens are shorter
        while True:
            buffer = c.create_string_buffer(room)
            size: int = self._library.llama_token_to_piece(self._address, token, buffer, room, 0, special)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def ends_generation(self, token: int) -> bool:
        """Whether generation stops at this token."""
        return bool(self._library.llama_vocab_is_eog(self._address, token))

    def checked(self, tokens: Tokens) -> npt.NDArray[np.int32]:
        """Give tokens as llama.cpp takes them, (T,) int32.

        Raises:
            UsageError: they are no row of whole numbers, or one of them is not in the vocabulary.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise UsageError("Tokens must be one row of whole numbers.")
        outside = np.flatnonzero((ids < 0) | (ids >= self.size))
        if outside.size:
            at = outside[0]
            raise UsageError(
                f"Token {ids[at]} at position {at} is not in the model's vocabulary of {self.size} tokens: "
                "make the tokens with this model."
            )
        return ids.astype(np.int32)
