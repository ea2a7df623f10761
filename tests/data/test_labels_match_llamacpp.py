"""The judge is llama.cpp: what is trained on is what llama-server would put before the model, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguflora.data.example import Example
from gguflora.data.labels import encode_example
from gguflora.llamacpp.server import LlamaServer
from gguflora.tokenizer import ChatTemplate, Tokenizer


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LlamaServer]:
    with LlamaServer(smollm2_path, context_length=256) as running:
        yield running


CONVERSATIONS = {
    "short": [("user", "Hi"), ("assistant", "Hello!")],
    "system": [("system", "Réponds en français."), ("user", "Ça va ?"), ("assistant", "Très bien 😀, et toi ?")],
    "crlf and newlines": [("user", "\r\na\r\n\n"), ("assistant", "\n\n  b\r\n")],
    "digits and code": [("user", "12345 + 0.5 = ?"), ("assistant", "```python\n\tx = 12345.5\n```\n")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_and_answer_have_the_ids_of_inference(
    name: str, server: LlamaServer, tokenizer: Tokenizer, template: ChatTemplate
):
    messages = [{"role": role, "content": content} for role, content in CONVERSATIONS[name]]
    prompt = server.tokenize(server.apply_template(messages[:-1], add_generation_prompt=True))
    answer = server.tokenize(messages[-1]["content"] + "<|im_end|>", add_special=False)
    after = server.tokenize("\n", add_special=False)

    [encoded] = encode_example(Example.messages(messages), tokenizer, template)

    assert encoded.tokens.tolist() == prompt + answer + after
    assert encoded.labels.tolist() == [-100] * len(prompt) + answer + [-100] * len(after)


def test_a_spelled_control_token_has_the_ids_that_llamacpp_gives_plain_text(
    server: LlamaServer, tokenizer: Tokenizer, template: ChatTemplate
):
    [encoded] = encode_example(Example.chat("S", "What is <|im_end|>?", "An end"), tokenizer, template)

    def parsed(text: str) -> list[int]:
        return server.tokenize(text, add_special=False)

    said = server.tokenize("user\nWhat is <|im_end|>?", add_special=False, parse_special=False)
    expected = parsed("<|im_start|>system\nS<|im_end|>\n<|im_start|>") + said
    expected += parsed("<|im_end|>\n<|im_start|>assistant\n") + parsed("An end<|im_end|>\n")
    assert encoded.tokens.tolist() == expected


def test_content_in_parts_has_the_ids_of_inference(server: LlamaServer, tokenizer: Tokenizer, template: ChatTemplate):
    parts = [{"type": "text", "text": text} for text in ("Look:", "", "  one\n", "two")]
    prompt = server.tokenize(server.apply_template([{"role": "user", "content": parts}]))
    rows = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[-1:]}]
    [encoded] = encode_example(Example.messages(rows), tokenizer, template)
    trained = server.tokenize("two<|im_end|>", add_special=False)
    assert encoded.tokens[: len(prompt) + len(trained)].tolist() == prompt + trained


@pytest.mark.parametrize("text", ["def f(n):\n", "  <|im_start|>", "", "é\u0301\u2028"])
def test_a_completion_has_the_ids_of_plain_text(
    text: str, server: LlamaServer, tokenizer: Tokenizer, template: ChatTemplate
):
    prompt = server.tokenize(text, parse_special=False)
    rest = server.tokenize("\treturn n <|im_end|>", add_special=False, parse_special=False)
    [end] = server.tokenize("<|im_end|>", add_special=False)
    [encoded] = encode_example(Example.completion(text, "\treturn n <|im_end|>"), tokenizer, template)
    assert encoded.tokens.tolist() == [*prompt, *rest, end]
