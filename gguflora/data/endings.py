"""What ends an answer where the template writes no end: what it writes before the next message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguflora.data.continuation import Row
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate


def text_behind(rows: Sequence[Row], index: int, switches: dict[str, Any], template: ChatTemplate) -> str:
    """What the template writes behind an answer once the next message stands there: some end a turn by the next one.

    Args:
        rows: the conversation.
        index: of the answer; if no other speaks behind it, the tool that it calls does, or else the user.
        switches: what the template is given besides: the tools.
        template: the base's.
    """
    *before, answer = rows[: index + 1]
    calls = answer.get("tool_calls", [])
    user, tool = {"role": "user", "content": "x"}, {"role": "tool", "content": "{}"}
    if calls:
        tool |= {"name": calls[0]["function"]["name"], "tool_call_id": calls[0].get("id", "")}
    spoken = [row for row in rows[index + 1 : index + 2] if row["role"] != "assistant"]
    plain = [_without_reasoning(row) for row in (*before, answer)]  # history may lack it
    for following in (*spoken, *([tool] if calls else []), user):
        for history in ([*before, answer], plain):
            try:
                alone = template.render(history, **switches)
                both = template.render([*history, following], **switches)
            except DataError:
                continue
            if both.startswith(alone):
                return both.removeprefix(alone)
    return ""


def _without_reasoning(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "reasoning_content"}
