"""SmolLM2's own tokenizer and template, which most tests of this room encode with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguflora.gguf import GgufFile, open_gguf
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> GgufFile:
    return open_gguf(smollm2_path)


@pytest.fixture(scope="session")
def tokenizer(smollm2: GgufFile) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def template(smollm2: GgufFile) -> ChatTemplate:
    return load_template(smollm2)
