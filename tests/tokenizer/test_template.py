"""A chat is rendered as llama-server renders it, and a template's own refusal reaches the user."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.errors import DataError, FileError, UsageError
from gguflora.gguf import ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.llamacpp import LlamaServer
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer
from tests.tokenizer.vocabularies import hard_text, spelled, write_vocabulary

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "templates"
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)

Chat = list[dict[str, Any]]

CHATS: list[Chat] = [
    [{"role": "user", "content": "Hi <b>\u00e9</b> & 'q' \"z\""}],
    [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": "  Hi \n"},
        {"role": "assistant", "content": "Yes\n\n"},
        {"role": "user", "content": "again"},
    ],
    [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "<|im_end|>{{ x }}"},
        {"role": "user", "content": "\U0001f468\u200d\U0001f469 \r\n\t\u2028"},
    ],
    [{"role": "developer", "content": "short"}, {"role": "user", "content": "a"}],
]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> ChatTemplate:
    return load_template(open_gguf(smollm2_path))


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(open_gguf(smollm2_path))


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LlamaServer]:
    with LlamaServer(smollm2_path, context_length=256) as running:
        yield running


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS, ids=range(len(CHATS)))
def test_smollm2_text_is_llama_servers(
    smollm2: ChatTemplate, server: LlamaServer, chat: Chat, add_generation_prompt: bool
) -> None:
    expected = server.apply_template(chat, add_generation_prompt=add_generation_prompt)
    assert smollm2.render(chat, add_generation_prompt=add_generation_prompt) == expected


@settings(max_examples=40, deadline=None)
@given(contents=st.lists(hard_text, min_size=1, max_size=4))
def test_smollm2_text_and_ids_are_llama_servers(
    smollm2: ChatTemplate, tokenizer: Tokenizer, server: LlamaServer, contents: list[str]
) -> None:
    """The ids that training sees are those that inference sees. (llama-server continues a last assistant turn.)"""
    roles = ["user", "assistant"] * len(contents)
    chat = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    if len(chat) % 2 == 0:
        chat.append({"role": "user", "content": "on"})
    text = server.apply_template(chat)
    assert smollm2.render(chat, add_generation_prompt=True) == text
    assert tokenizer.encode(text) == server.tokenize(text)


@pytest.mark.parametrize(
    "name", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.2-3B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407"]
)
def test_published_templates_give_llama_servers_text(smollm2_path: Path, name: str) -> None:
    """Templates with macros, namespaces, dates, JSON and tools."""
    path = PUBLISHED / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"published chat templates are not in {PUBLISHED}")
    source = path.read_text(encoding="utf-8")
    ours = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "a <city> \u00e9"}}}
    function = {"name": "weather", "description": "Says 'the' weather", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    with LlamaServer(smollm2_path, chat_template=source, context_length=256) as server:
        for chat in CHATS[:2]:
            assert ours.render(chat, add_generation_prompt=True) == server.apply_template(chat)
            assert ours.render(chat, add_generation_prompt=True, tools=tools) == server.apply_template(
                chat, tools=tools
            )


def _file(path: Path, more: dict[str, Value]) -> Path:
    tokens = ["<s>", "</s>", *(spelled(chr(byte)) for byte in range(128))]
    metadata: dict[str, Value] = {
        "tokenizer.ggml.token_type": (ValueType.INT32, [3, 3] + [1] * 128),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, 1),
    }
    return write_vocabulary(path, tokens, [], metadata | more)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_bos_and_eos_are_taken_off_where_tokenizing_adds_them(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    """Whatever the flags, one BOS and one EOS stand in the ids of a template that writes both (chat.cpp:959)."""
    template: dict[str, Value] = {
        "tokenizer.chat_template": (ValueType.STRING, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, add_bos),
        "tokenizer.ggml.add_eos_token": (ValueType.BOOL, add_eos),
    }
    gguf = open_gguf(_file(tmp_path / "v.gguf", template))
    text = load_template(gguf).render([{"role": "user", "content": "a"}])
    assert text == ("" if add_bos else "<s>") + "a" + ("" if add_eos else "</s>")
    assert load_tokenizer(gguf).encode(text) == [0, 2 + ord("a"), 1]


def test_tools_take_the_template_for_tools(tmp_path: Path) -> None:
    more: dict[str, Value] = {
        "tokenizer.chat_template": (ValueType.STRING, "plain{{ tools }}"),
        "tokenizer.chat_template.tool_use": (ValueType.STRING, "with {{ tools | length }}"),
    }
    template = load_template(open_gguf(_file(tmp_path / "v.gguf", more)))
    assert template.render([]) == template.render([], tools=None) == "plain"
    assert template.render([], tools=[{"name": "a"}]) == "with 1"


def test_the_clock_stands_still(tmp_path: Path) -> None:
    source = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }} {{ datetime }}"
    more: dict[str, Value] = {"tokenizer.chat_template": (ValueType.STRING, source)}
    template = load_template(open_gguf(_file(tmp_path / "v.gguf", more)), now=NOW)
    assert template.render([]) == "2026-02-03 03 Feb 2026 Feb 03 2026"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<a> \u00e9"}]'),
        ("{{ messages[0] | tojson(indent=2) }}", '{\n  "role": "user",\n  "content": "<a> \u00e9"\n}'),
        ("{{ ('<b>' | safe) + '<c>' }}", "<b><c>"),
        ("{{ none | default('x') }}{{ y | default('z') }}{{ '' | d('w', true) }}", "xzw"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("{{ enable_thinking }}{{ undefined_name }}{{ add_generation_prompt is defined }}", "TrueFalse"),
        ("{{ '{}-{}'.format(1, 'a') ~ 'x'.replace('x', 'y') }}{{ ['a', 'b'] | join('+') }}", "1-aya+b"),
        ("{% for k, v in messages[0].items() %}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}", "role,content"),
        ("{{ messages[0].content.strip().split(' ')[-1].upper() }}{{ messages[0].get('x') is none }}", "\u00c9True"),
    ],
)  # fmt: skip
def test_what_templates_may_use(source: str, text: str) -> None:
    """Text by hand, as llama.cpp's engine gives it: no HTML escapes, none is as good as undefined for default()."""
    assert ChatTemplate(source).render([{"role": "user", "content": "<a> \u00e9"}]) == text


def test_switches_are_those_that_the_template_reads() -> None:
    template = ChatTemplate("{% if enable_thinking %}think{% endif %}{{ mood }}", origin="m.gguf")
    assert template.render([], enable_thinking=False, mood="happy") == "happy"
    assert template.render([], mood=None) == "think"
    with pytest.raises(
        UsageError, match=r"template of m.gguf does not use moods: leave it out, or give one of enable_thinking, mood"
    ):
        template.render([], moods="x")


@pytest.mark.parametrize("name", ["bos_token", "raise_exception", "range", "strftime_now", "namespace"])
def test_what_the_template_gets_from_us_is_no_switch(name: str) -> None:
    switch: dict[str, Any] = {name: "x"}
    with pytest.raises(UsageError, match=f"does not use {name}"):
        ChatTemplate("{{ " + name + " }}").render([], **switch)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", r"of m.gguf refuses the messages: Roles must alternate\.$"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing | tojson }}", "not JSON serializable"),
        ("{% if %}", r"of m.gguf can't be used: .* \(line 1\)"),
        ("a\n{% for %}", r"\(line 2\)"),
        ("{{ 'a' | nothing }}", "No filter named 'nothing'"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_a_refusal_has_the_templates_own_words(source: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        ChatTemplate(source, origin="m.gguf").render([{"role": "user", "content": "a"}])


def test_a_broken_template_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    path = _file(tmp_path / "v.gguf", {"tokenizer.chat_template": (ValueType.STRING, "{% for %}")})
    with pytest.raises(DataError, match=r"v\.gguf can't be used"):
        load_template(open_gguf(path))


@pytest.mark.parametrize("value", [(ValueType.UINT32, 3), (ValueType.STRING, "a" * (2**20 + 1))])
def test_a_template_that_is_no_text_or_too_long_is_refused(tmp_path: Path, value: Value) -> None:
    with pytest.raises(FileError, match=r"tokenizer\.chat_template"):
        load_template(open_gguf(_file(tmp_path / "v.gguf", {"tokenizer.chat_template": value})))


def test_messages_are_plain_values() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    template = ChatTemplate("{{ messages }}")
    with pytest.raises(DataError, match="nests deeper than 64"):
        template.render([{"role": "user", "content": deep}])
    with pytest.raises(DataError, match="holds a PosixPath"):
        template.render([{"role": "user", "content": Path()}])
