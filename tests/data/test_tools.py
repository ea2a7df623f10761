"""Tool calls, tools and reasoning reach the template as from llama-server, and are trained as it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguflora.data import Named, prepare
from gguflora.data.example import Conversation, Example, Message
from gguflora.data.formats import load_jsonl, save_jsonl
from gguflora.data.labels import encode_example
from gguflora.data.rows import rows_of, switches_of
from gguflora.data.tools import ToolCall, read_tools
from gguflora.errors import DataError
from gguflora.llamacpp import LlamaServer
from gguflora.tokenizer import ChatTemplate, Tokenizer
from tests.data.test_labels import spans

PUBLISHED = Path(__file__).parents[3] / "shared" / "llama.cpp" / "templates"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says 'the' weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "a <city> \u00e9"}}},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "\u00c9vry"}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "7 degrees", "name": "weather", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Cold.", "reasoning_content": "7 is cold"},
    {"role": "user", "content": "Thanks"},
]


def example(messages: list[dict[str, Any]] = CONVERSATION) -> Example:
    return Example.messages(messages, tools=[WEATHER])


@pytest.mark.parametrize(
    "name",
    [
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "meta-llama-Llama-3.1-8B-Instruct",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "GLM-4.6",
        "google-gemma-2-2b-it",
    ],
)
def test_the_text_of_a_conversation_with_tools_is_llama_servers(smollm2_path: Path, name: str):
    """Gemma 2 knows neither tools nor a system message: llama-server puts that one's text before the user's."""
    path = PUBLISHED / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"published chat templates are not in {PUBLISHED}")
    source = path.read_text(encoding="utf-8")
    ours = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    chats = (
        [CONVERSATION[:2], CONVERSATION[:2] + CONVERSATION[4:]] if "gemma" in name else [CONVERSATION, CONVERSATION[:4]]
    )
    tools = [] if "gemma" in name else [WEATHER]
    with LlamaServer(smollm2_path, chat_template=source, context_length=256, threads=1) as server:
        for chat in chats:
            conversation = Example.messages(chat, tools=tools).content
            assert isinstance(conversation, Conversation)
            rendered = ours.render(
                rows_of(conversation.messages), add_generation_prompt=True, **switches_of(conversation)
            )
            assert rendered == server.apply_template(chat, **({"tools": tools} if tools else {}))


TOOLED = ChatTemplate(
    "{% for t in tools %}<|im_start|>tool {{ t.function.name }}<|im_end|>\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_calls_and_reasoning_are_trained_and_a_tools_answer_is_not(tokenizer: Tokenizer):
    [encoded] = encode_example(example(), tokenizer, TOOLED)
    assert spans(encoded, tokenizer) == [
        (
            False,
            "<|im_start|>tool weather<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (True, '<call>weather {"city": "\u00c9vry"}</call><|im_end|>'),
        (False, "\n<|im_start|>tool\n7 degrees<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<think>7 is cold</think>Cold.<|im_end|>"),
        (False, "\n<|im_start|>user\nThanks<|im_end|>\n"),
    ]


def test_a_template_that_passes_over_calls_is_refused(tokenizer: Tokenizer, template: ChatTemplate):
    """SmolLM2's would train an empty answer in place of the call."""
    with pytest.raises(DataError, match="the chat template does not write the tool call 'weather'"):
        list(encode_example(Example.messages(CONVERSATION), tokenizer, template))


def test_a_template_that_ends_an_answer_before_its_calls_is_refused(tokenizer: Tokenizer):
    """GigaChat 3 writes the end of a message between the answer and the call: the model would stop there."""
    ends = TOOLED.source.replace("{{ m.content }}", "{{ m.content }}{% if m.tool_calls %}<|im_end|>{% endif %}")
    with pytest.raises(DataError, match="does not write the tool call 'weather' before it ends the answer"):
        list(encode_example(example(), tokenizer, ChatTemplate(ends)))


@pytest.mark.parametrize("where", ["arguments", "reasoning_content", "description"])
def test_a_control_token_spelled_in_a_call_or_a_tool_is_text(where: str, tokenizer: Tokenizer):
    spelled = "<|im_end|>"
    call = CALL | {"function": {"name": "weather", "arguments": json.dumps({"city": spelled})}}
    answer: dict[str, Any] = {"role": "assistant", "content": "x"}
    answer |= {"arguments": {"tool_calls": [call]}, "reasoning_content": {"reasoning_content": spelled}}.get(where, {})
    function = WEATHER["function"] | {"description": spelled}  # type: ignore[operator]
    template = ChatTemplate(TOOLED.source.replace("{{ t.function.name }}", "{{ t.function.description }}"))
    [encoded] = encode_example(
        Example.messages([CONVERSATION[1], answer], tools=[{"type": "function", "function": function}]),
        tokenizer,
        template,
    )
    assert encoded.tokens.tolist().count(2) == 3  # the template's own ends: of the tool, the question and the answer
    assert tokenizer.decode(encoded.tokens.tolist()).count(spelled) == (4 if where == "description" else 5)


def test_an_answer_that_only_calls_is_not_empty(tokenizer: Tokenizer):
    calling = example(CONVERSATION[:3])
    assert len(prepare([calling], tokenizer, TOOLED, 500).encoded) == 1
    nothing = [CONVERSATION[1], {"role": "assistant", "content": " ", "reasoning_content": "hm"}]
    prepared = prepare([calling, Example.messages(nothing)], tokenizer, TOOLED, 500)
    assert prepared.skipped == {"empty answer": Named(1, ["example 2"])}


def test_tools_calls_and_reasoning_are_read_and_written_back(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": CONVERSATION, "tools": [WEATHER]}))
    [loaded] = load_jsonl(path)
    assert loaded == example()
    assert isinstance(loaded.content, Conversation)
    assert loaded.content.messages[2] == Message(
        "assistant", "", tool_calls=(ToolCall("weather", '{"city": "\u00c9vry"}', "call00001"),)
    )
    save_jsonl([loaded], tmp_path / "again.jsonl")
    assert load_jsonl(tmp_path / "again.jsonl") == [loaded]


@pytest.mark.parametrize("written", [{"reasoning_content": "hm"}, {"thinking": "hm"}])
def test_reasoning_has_two_names(written: dict[str, str]):
    [message] = Example.messages([{"role": "assistant", "content": "a", **written}]).content.messages  # type: ignore[union-attr]
    assert message == Message("assistant", "a", reasoning="hm")


def test_arguments_may_be_an_object_and_content_null_beside_a_call():
    """As in requests to llama-server, which writes such arguments without spaces."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, "\u00e9"]}}}
    example = Example.messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert example.content == Conversation(
        (Message("assistant", "", tool_calls=(ToolCall("f", '{"a":[1,"\u00e9"]}'),)),)
    )


def test_of_a_tool_is_kept_what_llama_server_keeps():
    function = {"strict": True, "name": "f", "parameters": {"b": 1, "a": 2}}
    assert read_tools([{"type": "function", "function": function, "id": 3}]) == (
        '{"type":"function","function":{"name":"f","description":"","parameters":{"b":1,"a":2}}}',
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "must be an array of tools"),
        ([1], "must be an object of type function"),
        ([{"type": "retrieval", "function": {"name": "f"}}], "must be an object of type function"),
        ([{"type": "function", "function": {}}], "needs a name"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"a": float("nan")}}}], "what JSON can't"),
    ],
)
def test_what_is_no_tool_is_refused(value: Any, reason: str):
    with pytest.raises(DataError, match=reason):
        read_tools(value)


def test_the_users_message_calls_nothing():
    with pytest.raises(DataError, match="a message of the user has reasoning or tool calls"):
        Example.messages([{"role": "user", "content": "a", "tool_calls": [CALL]}])
