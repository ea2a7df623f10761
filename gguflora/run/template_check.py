"""Whether conversations are rendered as the real llama-server renders them, tried on a few; no torch here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from gguflora.data import Conversation, Example, rows_of, switches_of
from gguflora.errors import DataError, GgufloraError
from gguflora.llamacpp import LlamaServer, available
from gguflora.llamacpp.library import INSTALL_COMMAND
from gguflora.llamacpp.stand_in import write_stand_in
from gguflora.report.checked import TemplateDifference, TemplateFacts
from gguflora.run.opening import Base
from gguflora.tokenizer import ChatTemplate

MOST = 8  # conversations that are compared
_LOOKED_AT = 1_000  # examples among which they are looked for
_SHOWN = 60  # characters of each text around the first difference
_BEFORE = 20  # of them before it


def compare(base: Base, examples: Iterable[Example]) -> TemplateFacts | None:
    """Render the first conversations of different shapes with llama-server too: what each answer would follow.

    The server gets a file with the model's tokenizer and template and next to no weights. None where there is nothing
    to compare.
    """
    chosen = distinct(examples)
    if not chosen or base.template.absent:
        return None
    if not available():
        return TemplateFacts(0, 0, (), f"llama-server is not installed: {INSTALL_COMMAND}")
    try:
        with tempfile.TemporaryDirectory(prefix="gguflora-") as folder:
            path = Path(folder) / "stand-in.gguf"
            write_stand_in(path, base.gguf, base.template.source, base.template.tool_source)
            with LlamaServer(path, context_length=256, threads=1) as server:
                found = [_difference(server, base.template, example) for example in chosen]
    except GgufloraError as error:
        return TemplateFacts(0, 0, (), f"llama-server could not be started: {error}")
    different = tuple(difference for difference in found if difference)
    return TemplateFacts(len(chosen), len(chosen) - len(different), different, "")


def distinct(examples: Iterable[Example]) -> list[Example]:
    """The first MOST conversations that differ in who speaks when, in reasoning, calls or tools."""
    found: dict[Any, Example] = {}
    for example in islice(examples, _LOOKED_AT):
        if len(found) == MOST:
            break
        if isinstance(example.content, Conversation) and len(_asked(example.content)):
            found.setdefault(_shape(example.content), example)
    return list(found.values())


def _shape(conversation: Conversation) -> Any:
    messages = [(one.role, bool(one.reasoning), bool(one.tool_calls)) for one in conversation.messages]
    return tuple(messages), bool(conversation.tools)


def _asked(conversation: Conversation) -> list[dict[str, Any]]:
    """What stands before the last answer; all, where there is none."""
    rows = rows_of(conversation.messages)
    answers = [index for index, row in enumerate(rows) if row["role"] == "assistant"]
    return rows[: answers[-1]] if answers else rows


def _difference(server: LlamaServer, template: ChatTemplate, example: Example) -> TemplateDifference | None:
    assert isinstance(example.content, Conversation)
    rows, tools = _asked(example.content), switches_of(example.content)
    ours = template.render(rows, add_generation_prompt=True, **tools)
    try:
        theirs = server.apply_template(rows, **tools, chat_template_kwargs=dict(template.switches))
    except DataError as error:
        return TemplateDifference(example.source, 0, ours[:_SHOWN], str(error))
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((index for index, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    shown = slice(max(0, place - _BEFORE), place - _BEFORE + _SHOWN)
    return TemplateDifference(example.source, place, ours[shown], theirs[shown])
