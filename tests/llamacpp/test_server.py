"""LlamaServer: the same texts, tokens and answers as llama-server gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguflora.errors import DataError, FileError, UsageError
from gguflora.llamacpp import LlamaModel, LlamaServer
from tests.llamacpp.conftest import AdapterWriter

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LlamaServer]:
    with LlamaServer(smollm2_path, context_length=512, threads=1) as running:
        yield running


def test_a_chat_is_rendered_by_the_models_own_template(server: LlamaServer) -> None:
    """SmolLM2's template, read by hand."""
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    user = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert server.apply_template(QUESTION) == system + user + "<|im_start|>assistant\n"
    assert server.apply_template(QUESTION, add_generation_prompt=False).rstrip("\n") == (system + user).rstrip("\n")


def test_another_template_can_be_given(tiny_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ mood }}{% endfor %}"
    with LlamaServer(tiny_path, chat_template=template, threads=1) as server:
        text = server.apply_template(QUESTION, chat_template_kwargs={"mood": "gladly"})
    assert text == "[user] What is the capital of France? gladly"


def test_tokens_are_those_of_the_model(server: LlamaServer, smollm2_path: Path) -> None:
    with LlamaModel(smollm2_path, threads=1) as model:
        for text in ("<|im_start|>hi there 12345<|im_end|>", "naïve 🜚", ""):
            assert server.tokenize(text) == model.tokenize(text)
            assert server.tokenize(text, parse_special=False) == model.tokenize(text, parse_special=False)


def test_the_models_stock_mode_answers_as_llama_server_does(server: LlamaServer, smollm2_path: Path) -> None:
    """Same file, same text, greedy: the settings of LlamaModel are llama-server's."""
    with LlamaModel(smollm2_path, threads=1) as model:
        tokens = model.generate(model.tokenize(server.apply_template(QUESTION)), 16)
        assert server.chat(QUESTION, max_tokens=16) == model.detokenize(tokens)
        assert len(tokens) > 3


def test_an_adapter_given_to_the_server_acts(tiny_path: Path, write_adapter: AdapterWriter) -> None:
    path = write_adapter()
    with LlamaServer(tiny_path, threads=1) as base, LlamaServer(tiny_path, lora=path, threads=1) as tuned:
        with LlamaModel(tiny_path, threads=1) as model:
            model.set_lora_adapter(model.load_lora_adapter(path))
            tokens = model.generate(model.tokenize(tuned.apply_template(QUESTION)), 12)
            expected = model.detokenize(tokens, special=False)
        assert tuned.chat(QUESTION, max_tokens=12) == expected
        assert base.chat(QUESTION, max_tokens=12) != expected


def test_a_chat_that_is_none_is_refused_with_the_reason(server: LlamaServer) -> None:
    with pytest.raises(DataError, match="Missing 'role' in message"):
        server.apply_template([{"content": "hi"}])


def test_files_that_cannot_be_served_are_refused_with_the_reason(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file or directory"):
        LlamaServer(tmp_path / "absent.gguf")
    with pytest.raises(FileError, match=r"expect general\.type to be 'adapter'"):
        LlamaServer(tiny_path, lora=tiny_path, threads=1)
    with pytest.raises(FileError, match="check its chat template"):
        LlamaServer(tiny_path, chat_template="{% if %}", threads=1)


def test_a_closed_server_refuses_and_closing_again_does_nothing(tiny_path: Path) -> None:
    server = LlamaServer(tiny_path, threads=1)
    server.close()
    server.close()
    with pytest.raises(UsageError, match="llama-server is closed"):
        server.tokenize("x")


def test_a_server_that_is_closed_at_once_returns(tiny_path: Path) -> None:
    """In a process of its own, because llama-server's way to fail here is to wait for ever."""
    code = f"""
from gguflora.llamacpp import LlamaServer
for _ in range(20):
    LlamaServer({str(tiny_path)!r}, threads=1).close()
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
