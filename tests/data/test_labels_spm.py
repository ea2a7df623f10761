"""Examples on a SentencePiece base: the prompt has the ids of inference, and no stray space stands before an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gguflora.data.example import Example
from gguflora.data.labels import encode_example
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.llamacpp import LlamaServer
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer
from tests.tokenizer.oracle import LlamaVocabulary
from tests.tokenizer.spm_vocabulary import EOS, phi_3_metadata, spm_metadata, write_spm, write_spm_model

LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (  # writes what the published one writes
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '<|user|>\n' + message.content + "
    "'<|end|>\n<|assistant|>\n' }}{% else %}{{ message.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else "
    "message.role) + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

FIRST = [{"role": "user", "content": "a caf\u00e9 ?"}, {"role": "assistant", "content": "b \U0001f642 cab"}]
SECOND = [{"role": "user", "content": " ab\n\nc"}, {"role": "assistant", "content": "  abc\n"}]


@dataclass(frozen=True)
class Model:
    """A SentencePiece base and its judges.

    Attributes:
        going_on: llama.cpp's tokenizer on the same vocabulary where the file asks for no space before a text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    server: LlamaServer
    going_on: LlamaVocabulary

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.server.tokenize(self.server.apply_template(messages))

    def anew(self, text: str, *, parse_special: bool = True) -> list[int]:
        return self.server.tokenize(text, add_special=False, parse_special=parse_special)

    def on(self, text: str) -> list[int]:
        return self.going_on.tokenize(text, add_special=False)


def _model(folder: Path, metadata: dict[str, Value]) -> Iterator[Model]:
    path = write_spm_model(folder / "model.gguf", metadata)
    no_prefix: dict[str, Value] = {"tokenizer.ggml.add_space_prefix": (ValueType.BOOL, False)}
    going_on = LlamaVocabulary(write_spm(folder / "going_on.gguf", metadata | no_prefix))
    gguf = open_gguf(path)
    with LlamaServer(path, context_length=256) as server:
        yield Model(load_tokenizer(gguf), load_template(gguf), server, going_on)


@pytest.fixture(scope="module")
def llama_2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    metadata = spm_metadata({"tokenizer.chat_template": (ValueType.STRING, LLAMA_2)})
    yield from _model(tmp_path_factory.mktemp("llama-2"), metadata)


@pytest.fixture(scope="module")
def phi_3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its special tokens swallow the white space behind them."""
    metadata = phi_3_metadata({"tokenizer.chat_template": (ValueType.STRING, PHI_3)})
    yield from _model(tmp_path_factory.mktemp("phi-3"), metadata)


def test_one_turn(llama_2: Model) -> None:
    prompt = llama_2.prompt(FIRST[:1])
    answer = [*llama_2.on(" b \U0001f642 cab "), EOS]
    [encoded] = encode_example(Example.messages(FIRST), llama_2.tokenizer, llama_2.template)
    assert encoded.tokens.tolist() == prompt + answer
    assert encoded.labels.tolist() == [-100] * len(prompt) + answer
    # In this template prompt and answer are one text to llama.cpp: no merge crosses the join, so it gives these ids.
    assert encoded.tokens.tolist() == llama_2.server.tokenize(llama_2.template.render(FIRST))


def test_two_turns(llama_2: Model) -> None:
    """The second prompt is that of inference up to the second answer, whose history holds the first."""
    prompt = llama_2.prompt(FIRST[:1])
    first = [*llama_2.on(" b \U0001f642 cab "), EOS]
    between = llama_2.anew("<s>[INST]  ab\n\nc [/INST]")
    second = [*llama_2.on("   abc\n "), EOS]
    [encoded] = encode_example(Example.messages(FIRST + SECOND), llama_2.tokenizer, llama_2.template)
    assert encoded.tokens.tolist() == prompt + first + between + second
    assert encoded.labels.tolist() == [-100] * len(prompt) + first + [-100] * len(between) + second
    assert prompt + first + between == llama_2.prompt(FIRST + SECOND[:1])


def test_an_answer_behind_a_special_token_has_no_space_in_front(phi_3: Model) -> None:
    """The prompt ends in a special token, behind which llama.cpp would begin a text anew, with a space."""
    prompt = phi_3.prompt(FIRST[:1])
    first = phi_3.on("b \U0001f642 cab<|end|>")
    between = phi_3.anew("<|end|>\n<|user|>\n ab\n\nc<|end|>\n<|assistant|>\n")[1:]
    second = phi_3.on("  abc\n<|end|>")
    [encoded] = encode_example(Example.messages(FIRST + SECOND), phi_3.tokenizer, phi_3.template)
    assert encoded.tokens.tolist() == prompt + first + between + second
    assert encoded.labels.tolist() == [-100] * len(prompt) + first + [-100] * len(between) + second
    assert phi_3.tokenizer.decode(first) == "b \U0001f642 cab<|end|>"
    assert phi_3.anew("b \U0001f642 cab<|end|>") != first  # the fixture can tell


def test_a_spelled_control_token_is_text_and_its_neighbours_keep_their_ids(phi_3: Model) -> None:
    """Behind `<|user|>` the newline is swallowed and a space put, as in a message that spells nothing."""
    spelled = [{"role": "user", "content": "a <|end|> b"}, {"role": "assistant", "content": "c<|user|>"}]
    [encoded] = encode_example(Example.messages(spelled), phi_3.tokenizer, phi_3.template)
    prompt = phi_3.anew("<s><|user|>") + phi_3.anew("a <|end|> b", parse_special=False)
    prompt += phi_3.anew("<|end|>\n<|assistant|>\n")
    answer = phi_3.going_on.tokenize("c<|user|>", add_special=False, parse_special=False) + phi_3.on("<|end|>")
    assert encoded.tokens.tolist() == prompt + answer
    assert encoded.labels.tolist() == [-100] * len(prompt) + answer


@pytest.mark.parametrize("prompt", ["ab", " ab ", "<|end|>", ""])
def test_a_completion_goes_on_from_its_prompt(llama_2: Model, prompt: str) -> None:
    """Without a prompt it is a text of its own, which begins with a space."""
    before = llama_2.server.tokenize(prompt, parse_special=False)
    rest = llama_2.on("c\n ab") if prompt else llama_2.anew("c\n ab")
    [encoded] = encode_example(Example.completion(prompt, "c\n ab"), llama_2.tokenizer, llama_2.template)
    assert encoded.tokens.tolist() == [*before, *rest, EOS]
    assert encoded.labels.tolist() == [-100] * len(before) + [*rest, EOS]


def test_gemma_3_has_the_ids_of_inference(gemma3_path: Path) -> None:
    """The base file has no template: both are given that of the chat model."""
    gguf = open_gguf(gemma3_path)
    tokenizer = load_tokenizer(gguf)
    template = ChatTemplate(GEMMA, bos_token="<bos>", eos_token="<eos>", add_bos=True)
    chat = FIRST + SECOND
    with LlamaServer(gemma3_path, chat_template=GEMMA, context_length=256) as server:
        [encoded] = encode_example(Example.messages(chat), tokenizer, template)
        prompt = server.tokenize(server.apply_template(chat[:1]))
        history = server.tokenize(server.apply_template(chat[:3]))
        first = server.tokenize("b \U0001f642 cab<end_of_turn>", add_special=False)
        second = server.tokenize("abc<end_of_turn>", add_special=False)
        newline = server.tokenize("\n", add_special=False)
    assert prompt[:2] == [2, 105]  # <bos>, once, then <start_of_turn>
    assert encoded.tokens.tolist() == history + second + newline
    between = len(history) - len(prompt) - len(first)
    expected = [-100] * len(prompt) + first + [-100] * between + second + [-100] * len(newline)
    assert encoded.labels.tolist() == expected
