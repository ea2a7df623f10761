"""Tools that the assistant may call, and its calls, as llama-server takes them from a request.

Source: common_chat_tools_parse_oaicompat, common_chat_msgs_parse_oaicompat and common_chat_tools_to_json_oaicompat in
llama.cpp's common/chat.cpp: of a tool it keeps name, description and parameters, of a call name, arguments and id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguflora.errors import DataError


@dataclass(frozen=True)
class ToolCall:
    """One call of a function by the assistant.

    Attributes:
        arguments: JSON text; templates that want an object get it parsed.
        id: what the tool's answer refers to; empty if there is none.

    Raises:
        DataError: the name is empty, or a value is not text.
    """

    name: str
    arguments: str
    id: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.arguments, self.id)) or not self.name:
            raise DataError("a tool call needs a name, arguments and, if any, an id, each of them text.")

    def record(self) -> dict[str, Any]:
        """The call as a message's `tool_calls` holds it and as templates read it."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {**call, "id": self.id} if self.id else call


def read_tool_calls(value: object) -> tuple[ToolCall, ...]:
    """The calls of a message's `tool_calls`.

    Raises:
        DataError: it is no array of functions with name and arguments.
    """
    if not isinstance(value, list | tuple):
        raise DataError("'tool_calls' must be an array of calls.")
    return tuple(call if isinstance(call, ToolCall) else _call(call) for call in value)


def read_tools(value: object) -> tuple[str, ...]:
    """The tools of a request or record, each as the JSON text of what a template is given.

    Raises:
        DataError: it is no array of functions with a name.
    """
    if not isinstance(value, list | tuple):
        raise DataError("'tools' must be an array of tools.")
    return tuple(_tool(tool) for tool in value)


def _call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise DataError("a tool call must be an object of type function, with a function that has name and arguments.")
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else _json(arguments)
    return ToolCall(function.get("name", ""), text, call.get("id") or "")


def _tool(tool: object) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or not isinstance(function, Mapping) or tool.get("type") != "function":
        raise DataError("a tool must be an object of type function, with a function that has a name.")
    if not isinstance(function.get("name"), str) or not isinstance(function.get("description", ""), str):
        raise DataError("a tool's function needs a name, and its description must be text.")
    kept = {
        "name": function["name"],
        "description": function.get("description", ""),
        "parameters": function.get("parameters", {}),
    }
    return _json({"type": "function", "function": kept})


def _json(value: object) -> str:
    """As llama.cpp writes it: no spaces, no escapes but those that JSON needs."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a tool or a call holds what JSON can't: {error}.") from error
    return text
