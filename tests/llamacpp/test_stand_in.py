"""A model with next to no weights is rendered and tokenized by llama-server as the model that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguflora.gguf import open_gguf
from gguflora.llamacpp import LlamaServer
from gguflora.llamacpp.stand_in import write_stand_in
from gguflora.tokenizer import CHATML

MESSAGES = [
    {"role": "user", "content": "Hi 👋\r\n  12345 <|im_end|>"},
    {"role": "assistant", "content": "Ça va"},
    {"role": "user", "content": "\ton"},
]


def test_it_is_small_and_serves_the_same_template_and_tokenizer(smollm2_path: Path, tmp_path: Path):
    gguf = open_gguf(smollm2_path)
    path = tmp_path / "stand-in.gguf"
    write_stand_in(path, gguf, gguf.metadata["tokenizer.chat_template"])
    assert path.stat().st_size < gguf.file_bytes / 30
    with LlamaServer(path, context_length=256) as served, LlamaServer(smollm2_path, context_length=256) as real:
        text = served.apply_template(MESSAGES)
        assert text == real.apply_template(MESSAGES)
        assert served.tokenize(text) == real.tokenize(text)


@pytest.mark.parametrize("tools", [True, False])
def test_it_may_have_other_templates(smollm2_path: Path, tmp_path: Path, tools: bool):
    path = tmp_path / "stand-in.gguf"
    write_stand_in(path, open_gguf(smollm2_path), CHATML, CHATML.replace("user", "person") + "{{ tools | length }}")
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    with LlamaServer(path, context_length=256) as served:
        text = served.apply_template(MESSAGES, **({"tools": [tool]} if tools else {}))
    assert text.endswith("assistant\n1" if tools else "assistant\n")
