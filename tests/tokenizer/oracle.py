"""llama.cpp's own tokenizer on a file that holds a vocabulary and no weights."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from gguflora.llamacpp.library import load
from gguflora.llamacpp.vocabulary import Vocabulary


class LlamaVocabulary:
    """The vocabulary of `path` in llama.cpp, freed with its last reference."""

    def __init__(self, path: Path) -> None:
        library = load()
        params = library.llama_model_default_params()
        params.vocab_only = True
        model = library.llama_model_load_from_file(os.fsencode(path), params)
        assert model, f"llama.cpp does not load {path}"
        weakref.finalize(self, library.llama_model_free, model)
        self._vocabulary = Vocabulary(library, model)
        self.size = self._vocabulary.size

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return self._vocabulary.tokenize(text.encode(), add_special, parse_special)

    def token_bytes(self, token: int, *, special: bool = True) -> bytes:
        return self._vocabulary.piece(token, special)

    def eog(self) -> set[int]:
        return {token for token in range(self.size) if self._vocabulary.ends_generation(token)}
