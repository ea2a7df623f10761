"""What `gguflora render` does: the text of a conversation, as llama-server's /apply-template gives it. No torch here.

Of a message llama-server reads role, content, reasoning_content, tool_calls, name and tool_call_id, and tools beside
the messages; whatever else a message has it leaves out, and so do we (common_chat_msgs_parse_oaicompat, llama.cpp
common/chat.cpp:373). What else a request may have is refused here: options of the template are given on the command
line. A last message of the assistant is not closed: it is what the model shall go on from
(tools/server/server-common.cpp:1326, common/chat-auto-parser-generator.cpp:45).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gguflora.config import TemplateConfig
from gguflora.data.json_records import STRICT
from gguflora.data.tools import read_tool_calls, read_tools
from gguflora.errors import DataError
from gguflora.gguf import open_gguf
from gguflora.run.template import open_template
from gguflora.tokenizer import ChatTemplate

T = TypeVar("T")

STANDARD_INPUT = Path("-")
MAX_FILE = 64 * 2**20  # bytes

_BOM = b"\xef\xbb\xbf"
_NOT_YET_IN_REQUEST = (
    "functions",
    "tool_choice",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "reasoning_effort",
    "reasoning_format",
    "response_format",
    "json_schema",
    "grammar",
)
_REASONING = ("think", "reasoning")  # what a template that writes a block of thoughts has in it

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation as templates read it: its messages, and what else they are given (tools)."""

    messages: list[Message]
    switches: dict[str, Any]


def render(
    model: Path,
    messages: Path,
    *,
    generation_prompt: bool,
    config: TemplateConfig = TemplateConfig(),  # noqa: B008 (frozen)
) -> str:
    """The text that `model` would be given for the conversation in the file `messages`.

    Args:
        model: GGUF file; one that holds a vocabulary and a template alone will do.
        messages: JSON file with a list of messages, or an object that has them under the key messages, and tools if
            any; STANDARD_INPUT reads standard input.
        generation_prompt: end where the assistant's answer starts.
        config: which template, and what it is told.

    Raises:
        DataError: the file holds no such messages, or the template refuses them.
        FileError: the model's file is damaged.
        ModelError: its tokenizer is not supported.
    """
    name = "standard input" if messages == STANDARD_INPUT else str(messages)
    chat = read_chat(_read(messages, name), name)
    template = open_template(open_gguf(model), config)
    if not (chat.messages and chat.messages[-1]["role"] == "assistant"):
        return template.render(chat.messages, add_generation_prompt=generation_prompt, **chat.switches)
    return _continued(template, chat, name)


def read_chat(data: bytes, name: str) -> Chat:
    """The messages and tools in JSON text.

    Args:
        data: a list of messages, or an object that has them under the key messages.
        name: where it is from, for errors.

    Raises:
        DataError: it is no JSON, or not as said above.
    """
    value = _decode(data, name)
    tools: tuple[str, ...] = ()
    if isinstance(value, dict):
        _refuse(value, _NOT_YET_IN_REQUEST, name)
        tools = _named(name, lambda given: read_tools(given or ()), value.get("tools"))
        value = value.get("messages")
    if not isinstance(value, list):
        raise DataError(f"{name} has no list of messages: give one, or an object that has it under the key messages.")
    messages = [_message(message, f"{name}, message {number}") for number, message in enumerate(value, 1)]
    return Chat(messages, {"tools": [json.loads(tool) for tool in tools]} if tools else {})


def _continued(template: ChatTemplate, chat: Chat, name: str) -> str:
    """The conversation up to its last message, what opens an answer, and the last message's text, left open."""
    *before, last = chat.messages
    if before and before[-1]["role"] == "assistant":
        raise DataError(
            f"{name} ends with two messages of the assistant: llama-server takes one at most, so join them."
        )
    if last.keys() - {"role", "content"} or any(mark in template.source for mark in _REASONING):
        raise DataError(
            f"{name} ends with a message of the assistant, which can't be continued yet where it calls tools or where "
            "the template writes reasoning: leave the message out."
        )
    closed = template.render(before, **chat.switches)
    if not last["content"]:
        return closed
    opened = template.render(before, add_generation_prompt=True, **chat.switches)
    content: str = last["content"]
    return closed + opened[_common_length(closed, opened) :] + content


def _common_length(a: str, b: str) -> int:
    """Characters that both begin with."""
    differing = (index for index, (left, right) in enumerate(zip(a, b, strict=False)) if left != right)
    return next(differing, min(len(a), len(b)))


def _read(path: Path, name: str) -> bytes:
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise DataError(f"{name} can't be read ({error.strerror or error}); check the path.") from error
    if len(data) > MAX_FILE:
        raise DataError(f"{name} is longer than {MAX_FILE} bytes: give one conversation.")
    return data


def _decode(data: bytes, name: str) -> Any:
    try:
        return STRICT.decode(data.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}:{error.colno}: this is not JSON ({error.msg}); correct it.") from error
    except RecursionError as error:
        raise DataError(f"{name}: arrays and objects are nested too deeply; give a list of messages.") from error
    except (DataError, ValueError) as error:  # a key twice, NaN, a number of too many digits
        raise DataError(f"{name}: {error}") from error


def _message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where}, is no object: give it role and content.")
    calls = _named(where, lambda given: read_tool_calls(given or ()), message.get("tool_calls"))
    needed = ("role",) if calls else ("role", "content")
    missing = [key for key in needed if key not in message]
    if missing:
        raise DataError(f"{where}, has no {' and no '.join(missing)}: give it both.")
    row: Message = {"role": _text(message["role"], "role", where), "content": _optional(message, "content", where)}
    for key in ("reasoning_content", "name", "tool_call_id"):
        row[key] = _optional(message, key, where)
    row["tool_calls"] = [call.record() for call in calls]
    return {key: value for key, value in row.items() if value or key in ("role", "content")}


def _named(where: str, read: Callable[[object], T], value: object) -> T:
    """What `read` makes of a value; its errors say where the value stands."""
    try:
        return read(value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _optional(message: dict[str, Any], key: str, where: str) -> str:
    """A text that may be absent or null, which is as good as empty, as in llama-server."""
    return "" if message.get(key) is None else _text(message[key], key, where)


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: the {key} is not text, and only text can be rendered.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the {key} holds half of a surrogate pair, {value[error.start]!a}; remove it."
        ) from error
    return value


def _refuse(record: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """What would change llama-server's text, and is not rendered here, is never passed over."""
    for key in keys:
        if record.get(key) is not None:
            raise DataError(f"{where}: the key {key} is there, which can't be rendered yet: leave it out.")
