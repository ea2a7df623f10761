"""What a chat template wants its messages to look like, found by trying, as llama.cpp does before it renders.

Source: caps_get in llama.cpp's common/jinja/caps.cpp, and func_args_not_string and system_message_not_supported in
common/chat.cpp. llama.cpp watches which values a template reads; here it counts what comes out of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from gguflora.errors import DataError

Row = dict[str, Any]
Render = Callable[[Sequence[Row]], str]

_MARK = "gguflora-probe"


def wants_argument_objects(render: Render) -> bool:
    """Whether the arguments of tool calls are read as an object; else they stay JSON text."""
    function = {"name": "tool1", "arguments": {"arg": _MARK}}
    call = {"id": "call00001", "type": "function", "function": function}
    try:
        text = render(
            [
                {"role": "user", "content": "User message"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "Tool response", "tool_call_id": "call00001"},
                {"role": "assistant", "content": "The tool response was 'tool response'"},
                {"role": "user", "content": "User message"},
            ]
        )
    except DataError:
        return False
    return _MARK in text


def takes_system_message(render: Render) -> bool:
    """Whether a system message is written; else llama-server puts its text before the first message of the user."""
    try:
        text = render([{"role": "system", "content": _MARK}, {"role": "user", "content": "User message"}])
    except DataError:
        return False
    return _MARK in text


def shows_thinking(render: Callable[[Sequence[Row], bool], str]) -> bool:
    """Whether the switch enable_thinking decides how an answer is opened, or reasoning is written: else llama-server
    turns it off (common_chat_templates_support_enable_thinking in common/chat.cpp).

    Args:
        render: messages, and the switch -> text.
    """
    question = {"role": "user", "content": _MARK}
    answer = {"role": "assistant", "content": "Assistant message", "reasoning_content": f"{_MARK}-thought"}
    try:
        on, off = (render([question], thinking).rpartition(_MARK)[2] for thinking in (True, False))
        return on != off or f"{_MARK}-thought" in render([question, answer], True)
    except DataError:
        return True


def with_argument_objects(rows: Sequence[Row]) -> list[Row]:
    """The messages with the arguments of their tool calls parsed.

    Raises:
        DataError: some are not JSON.
    """
    return [
        row | {"tool_calls": [_parsed(call) for call in row["tool_calls"]]} if "tool_calls" in row else row
        for row in rows
    ]


def with_system_in_next(rows: Sequence[Row]) -> list[Row]:
    """The messages with a first one of the system put before the next one's text; alone it is left out."""
    first, *rest = rows
    if not rest:
        return []
    return [rest[0] | {"content": f"{first['content']}\n{rest[0]['content']}"}, *rest[1:]]


def _parsed(call: Row) -> Row:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        name = call["function"].get("name")
        raise DataError(
            f"the arguments of the tool call {name!r} are not JSON, which the chat template wants."
        ) from error
    return call | {"function": call["function"] | {"arguments": value}}
