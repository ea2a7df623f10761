"""Messages are given to a family's template as llama-server gives them, and no others are touched."""

from __future__ import annotations

from typing import Any

import pytest

from gguflora.tokenizer import ChatTemplate
from gguflora.tokenizer.families import rewritten

USER = {"role": "user", "content": " q\n"}
THOUGHT: dict[str, Any] = {"role": "assistant", "content": " a ", "reasoning_content": "\thm\n"}
CALL: dict[str, Any] = {**THOUGHT, "content": "", "tool_calls": [{"type": "function"}]}
SYSTEM = {"role": "system", "content": "s"}

# What a template's text is told by; the messages that come out of USER, THOUGHT, CALL and SYSTEM, by hand from
# common/chat.cpp and common/parsers/{gpt-oss,lfm2,ministral3}.cpp.
FAMILIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "any other": ("<|im_start|>", [USER, THOUGHT, CALL, SYSTEM]),
    "StepFun": (
        "# Tools\n\nYou have access to the following functions in JSONSchema format:",
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": CALL["tool_calls"]},
            SYSTEM,
        ],
    ),
    "gpt-oss": (
        "<|start|>assistant<|channel|>",
        [
            USER,
            {**THOUGHT, "thinking": "\thm\n"},
            {
                "role": "assistant",
                "reasoning_content": "\thm\n",
                "thinking": "\thm\n",
                "tool_calls": CALL["tool_calls"],
            },
            SYSTEM,
        ],
    ),
    "LFM2": (
        "<|tool_list_start|>[]<|tool_list_end|>",
        [USER, {**THOUGHT, "thinking": "\thm\n"}, {**CALL, "thinking": "\thm\n"}, SYSTEM],
    ),
    "LFM2.5": ("List of tools: [", [USER, {**THOUGHT, "thinking": "\thm\n"}, {**CALL, "thinking": "\thm\n"}, SYSTEM]),
    "Ministral": (
        "[SYSTEM_PROMPT] [TOOL_CALLS] [ARGS]",
        [
            USER,
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "\thm\n"}, {"type": "text", "text": " a "}],
            },
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "\thm\n"}, {"type": "text", "text": ""}],
                "tool_calls": CALL["tool_calls"],
            },
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
        ],
    ),
    "Mistral Small 3.2": ("[SYSTEM_PROMPT] [TOOL_CALLS] [CALL_ID] [ARGS]", [USER, THOUGHT, CALL, SYSTEM]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_are_as_the_family_is_given_them(family: str):
    source, expected = FAMILIES[family]
    given = [dict(row) for row in (USER, THOUGHT, CALL, SYSTEM)]
    assert rewritten(given, source) == expected
    assert given == [USER, THOUGHT, CALL, SYSTEM]


SAYS = "{{ 'on ' if enable_thinking else 'off ' }}"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (SAYS + "{{ messages[0].content }}", "off q"),
        (SAYS + "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}", "on q<think>"),
        (SAYS + "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}", "on q"),
    ],
)
def test_thinking_is_on_where_the_template_shows_some(source: str, text: str):
    """Apertus says in its system message whether it thinks, and shows no thinking: llama-server turns it off."""
    assert ChatTemplate(source).render([{"role": "user", "content": "q"}], add_generation_prompt=True) == text
