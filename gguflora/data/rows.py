"""A conversation as chat templates read it: the plain values that llama-server makes of a request.

Source: common_chat_msg::to_json_oaicompat in llama.cpp's common/chat.cpp: content is always there, what is empty is
left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gguflora.data.example import Conversation, Message


def rows_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, each as a mapping."""
    return [_row(message) for message in messages]


def switches_of(conversation: Conversation) -> dict[str, Any]:
    """What a template is given besides the messages: the tools, where there are any."""
    return {"tools": [json.loads(tool) for tool in conversation.tools]} if conversation.tools else {}


def _row(message: Message) -> dict[str, Any]:
    optional = {
        "reasoning_content": message.reasoning,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [call.record() for call in message.tool_calls],
    }
    return {
        "role": message.role,
        "content": message.content,
        **{key: value for key, value in optional.items() if value},
    }
