"""What llama-server does to messages for some families of templates before it renders them; by the template's text.

Source: common_chat_templates_apply_jinja and common_chat_try_specialized_template in llama.cpp's common/chat.cpp (as
vendored in llama-cpp-python 0.3.36; numbers are its lines), and common/parsers/ beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

_C_SPACE = " \t\n\v\f\r"

_STEPFUN = "You have access to the following functions in JSONSchema format"
_GPT_OSS = "<|channel|>"
_LFM2 = ("<|tool_list_start|>", "<|tool_list_end|>")
_LFM2_5 = "List of tools: ["
_MISTRAL = ("[SYSTEM_PROMPT]", "[TOOL_CALLS]", "[ARGS]")


def rewritten(rows: Sequence[Row], source: str) -> list[Row]:
    """The messages as the template's family is given them.

    Args:
        rows: as the user gave them; never changed.
        source: the template's Jinja text.
    """
    if _STEPFUN in source:  # 1240
        rows = [_trimmed(row) for row in rows]
    if all(mark in source for mark in _MISTRAL) and "[CALL_ID]" not in source:  # 1103, parsers/ministral3.cpp
        return [_in_parts(row) if row["role"] in ("system", "assistant") else row for row in rows]
    if _GPT_OSS in source:  # 1110, parsers/gpt-oss.cpp
        return [_thinking(row, calls_alone=True) for row in rows]
    if all(mark in source for mark in _LFM2) or (_LFM2_5 in source and _LFM2[0] not in source):  # 1158, 1164
        return [_thinking(row, calls_alone=False) for row in rows]
    return list(rows)


def _trimmed(row: Row) -> Row:
    trimmed = {key: row[key].strip(_C_SPACE) for key in ("content", "reasoning_content") if key in row}
    return {key: value for key, value in (row | trimmed).items() if value or key != "reasoning_content"}


def _thinking(row: Row, *, calls_alone: bool) -> Row:
    """With its reasoning under the name that the template reads; beside calls, the content is left out if asked for."""
    if "reasoning_content" not in row:
        return row
    row = row | {"thinking": row["reasoning_content"]}
    return (
        {key: value for key, value in row.items() if key != "content"} if calls_alone and "tool_calls" in row else row
    )


def _in_parts(row: Row) -> Row:
    """With reasoning and content as parts of one list."""
    parts = []
    if "reasoning_content" in row:
        parts.append({"type": "thinking", "thinking": row["reasoning_content"]})
    if "content" in row:
        parts.append({"type": "text", "text": row["content"]})
    return {key: value for key, value in row.items() if key != "reasoning_content"} | {"content": parts}
