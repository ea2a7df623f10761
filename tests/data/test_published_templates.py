"""What is trained with published templates: the assistant's words and what ends them, whatever the messages say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.data.encoded import Encoded
from gguflora.data.example import Example
from gguflora.data.labels import encode_example
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer
from tests.tokenizer.vocabularies import pair_vocabulary, write_vocabulary

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "templates"


@dataclass(frozen=True)
class Published:
    """What a template does, read in its text.

    Attributes:
        controls: its control tokens; the first two are BOS and EOS.
        opened: what it writes where generation of an answer starts, before the words.
        end: what ends an answer.
        every: earlier answers stand in history as they were generated; else each has a document of its own.
        strips: what it takes off the words: white space at both ends ("trims"), or newlines before them ("newlines").
        system: a system message stands in history as in the prompt (Nemo's puts it into the last question alone).
        options: switches to render with.
    """

    controls: str
    opened: str
    end: str
    every: bool = True
    strips: str = ""
    system: bool = True
    options: tuple[tuple[str, bool], ...] = ()


CHATML = "<|endoftext|> <|im_end|> <|im_start|>"
LLAMA_3 = "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|python_tag|>"
TEMPLATES = {
    "Qwen-Qwen2.5-7B-Instruct": Published(CHATML, "", "<|im_end|>"),
    "Qwen-Qwen3-0.6B": Published(CHATML, "<think>\n\n</think>\n\n", "<|im_end|>", every=False, strips="newlines"),
    "Qwen-Qwen3-0.6B, no thinking": Published(
        CHATML, "", "<|im_end|>", every=False, strips="newlines", options=(("enable_thinking", False),)
    ),
    "Qwen3-Coder": Published(CHATML, "", "<|im_end|>"),
    "google-gemma-2-2b-it": Published("<bos> <eos> <start_of_turn> <end_of_turn>", "", "<end_of_turn>", strips="trims"),
    "ibm-granite-granite-3.3-2B-Instruct": Published(
        "<|end_of_text|> <|end_of_text|> <|start_of_role|> <|end_of_role|>", "", "<|end_of_text|>"
    ),
    "llama-cpp-lfm2": Published("<|startoftext|> <|im_end|> <|im_start|>", "", "<|im_end|>"),
    "meta-llama-Llama-3.1-8B-Instruct": Published(LLAMA_3, "", "<|eot_id|>", strips="trims"),
    "meta-llama-Llama-3.2-3B-Instruct": Published(LLAMA_3, "", "<|eot_id|>", strips="trims"),
    "microsoft-Phi-3.5-mini-instruct": Published(
        "<s> <|endoftext|> <|system|> <|user|> <|assistant|> <|end|>", "", "<|end|>"
    ),
    "mistralai-Mistral-Nemo-Instruct-2407": Published("<s> </s> [INST] [/INST]", "", "</s>", system=False),
    "openai-gpt-oss-120b": Published(
        "<|startoftext|> <|return|> <|start|> <|end|> <|message|> <|channel|> <|call|>",
        "<|channel|>final<|message|>",
        "<|return|>",
        every=False,
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": Published(
        " ".join(
            f"<\uff5c{name}\uff5c>"
            for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant")
        ),
        "\n</think>\n\n",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        every=False,
    ),
    "GLM-4.6": Published(
        "[gMASK] <|endoftext|> <sop> <|user|> <|assistant|>", "\n<think></think>\n", "<|user|>", strips="trims"
    ),
}


@dataclass(frozen=True)
class Model:
    published: Published
    tokenizer: Tokenizer
    template: ChatTemplate


@pytest.fixture(params=TEMPLATES, scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A template with a vocabulary of bytes and its own control tokens, so that any text decodes to itself."""
    published = TEMPLATES[request.param]
    source = text_of(request.param.split(",")[0])
    path = model_file(tmp_path_factory.mktemp("model") / "model.gguf", published.controls, source)
    gguf = open_gguf(path)
    template = load_template(gguf, switches=dict(published.options))
    yield Model(published, load_tokenizer(gguf), template)


def text_of(name: str) -> str:
    path = PUBLISHED / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"published chat templates are not in {PUBLISHED}")
    return path.read_text(encoding="utf-8")


def model_file(path: Path, controls: str, template: str) -> Path:
    names = list(dict.fromkeys(controls.split(" ")))
    types = [3] * len(names) + [1] * 256
    ids = [names.index(name) for name in controls.split(" ")]
    metadata: dict[str, Value] = {
        "tokenizer.ggml.token_type": (ValueType.INT32, types),
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, ids[0]),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, ids[1]),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, "<s>" in names),
        "tokenizer.chat_template": (ValueType.STRING, template),
    }
    if "<|user|>" in names and "<|end|>" not in names:  # GLM's file says so
        metadata["tokenizer.ggml.eot_token_id"] = (ValueType.UINT32, names.index("<|user|>"))
    return write_vocabulary(path, [*names, *pair_vocabulary()[0][:256]], [], metadata)


def trained(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    runs = groupby(zip((encoded.labels >= 0).tolist(), encoded.tokens.tolist(), strict=True), key=lambda pair: pair[0])
    return [tokenizer.decode([token for _, token in run]) for kind, run in runs if kind]


def expected(published: Published, answers: list[str]) -> list[str]:
    def kept(text: str) -> str:
        match published.strips:
            case "trims":
                return text.strip()
            case "newlines":
                return text.lstrip("\n")
            case _:
                return text

    return [published.opened + kept(answer) + published.end for answer in answers]


words = st.lists(
    st.sampled_from(
        ["a", "Z9", "\u00e9", "\U0001f642", " ", "\n", "\t", "\r\n", "<", "|>", "{{ x }}", "user", "\u3000"]
    ),
    min_size=1,
    max_size=6,
).map("".join)
visible = words.map(lambda text: f"{text}x")  # a template may act on text of white space alone


@settings(max_examples=25, deadline=None)
@given(system=st.none() | visible, turns=st.lists(st.tuples(visible, visible), min_size=1, max_size=3))
def test_the_answers_and_their_ends_are_trained(model: Model, system: str | None, turns: list[tuple[str, str]]):
    opening = [] if system is None or not model.published.system else [{"role": "system", "content": system}]
    dialogue = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    documents = list(encode_example(Example.messages([*opening, *dialogue]), model.tokenizer, model.template))
    answers = expected(model.published, [answer for _, answer in turns])
    assert [text for document in documents for text in trained(document, model.tokenizer)] == answers
    assert len(documents) == (1 if model.published.every else len(turns))
    [last] = encode_example(Example.messages([*opening, *dialogue]), model.tokenizer, model.template, "last")
    assert trained(last, model.tokenizer) == answers[-1:]


def test_one_bos_and_the_end_token_is_one_that_stops_generation(model: Model):
    dialogue = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    messages = [{"role": role, "content": text} for role, text in dialogue]
    *_, encoded = encode_example(Example.messages(messages), model.tokenizer, model.template)
    vocabulary = model.tokenizer.vocabulary
    if vocabulary.add_bos:
        assert encoded.tokens.tolist().count(vocabulary.bos) == 1
        assert encoded.tokens[0] == vocabulary.bos
    ends = [label for label in encoded.labels.tolist() if label in vocabulary.eog]
    assert len(ends) == (2 if model.published.every else 1)


def encoded_with(tmp_path: Path, name: str, controls: str, *examples: Example) -> tuple[Tokenizer, list[list[Encoded]]]:
    gguf = open_gguf(model_file(tmp_path / "model.gguf", controls, text_of(name)))
    tokenizer, template = load_tokenizer(gguf), load_template(gguf)
    return tokenizer, [list(encode_example(example, tokenizer, template)) for example in examples]


def texts(encoded: Encoded, tokenizer: Tokenizer) -> tuple[str, str]:
    """Of a document with one answer: what stands before it, and what is trained."""
    [trained_text] = trained(encoded, tokenizer)
    before = int((encoded.labels >= 0).argmax())
    return tokenizer.decode(encoded.tokens[:before].tolist()), trained_text


def test_a_system_message_that_is_in_no_finished_conversation_stands_where_the_model_is_asked(tmp_path: Path):
    """Mistral Nemo's template puts it into the last question alone, and into none once that is answered."""
    dialogue = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    example = Example.messages([{"role": role, "content": content} for role, content in dialogue])
    tokenizer, [documents] = encoded_with(
        tmp_path, "mistralai-Mistral-Nemo-Instruct-2407", "<s> </s> [INST] [/INST]", example
    )
    assert [texts(document, tokenizer) for document in documents] == [
        ("<s>[INST]s\n\nq1[/INST]", "a1</s>"),
        ("<s>[INST]q1[/INST]a1</s>[INST]s\n\nq2[/INST]", "a2</s>"),
    ]


def test_an_answer_goes_on_from_the_reasoning_that_the_prompt_opens(tmp_path: Path):
    """DeepSeek R1 starts generation inside of <think>, and writes a finished answer without it."""
    names = ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant")
    controls = " ".join(f"<\uff5c{name}\uff5c>" for name in names)
    bos, end, user, assistant = controls.split(" ")
    apart = {"role": "assistant", "content": "a", "reasoning_content": "so"}
    inside = {"role": "assistant", "content": "<think>\nso\n</think>\n\na"}
    question = {"role": "user", "content": "q"}
    examples = [Example.chat(None, "q", "a")]
    examples += [Example.messages([question, answer]) for answer in (apart, inside)]
    examples.append(Example.messages([question, apart, question, apart]))
    name = "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"
    tokenizer, [[plain], [first], [second], turns] = encoded_with(tmp_path, name, controls, *examples)
    prompt = f"{bos}{user}q{assistant}<think>\n"
    assert texts(plain, tokenizer) == (prompt, f"\n</think>\n\na{end}")
    assert texts(first, tokenizer) == texts(second, tokenizer) == (prompt, f"so\n</think>\n\na{end}")
    assert [texts(document, tokenizer) for document in turns] == [
        (prompt, f"so\n</think>\n\na{end}"),
        (f"{bos}{user}q{assistant}a{end}{user}q{assistant}<think>\n", f"so\n</think>\n\na{end}"),
    ]
    assert [one.no_reasoning for one in (plain, first, second)] == [1, 0, 0]
