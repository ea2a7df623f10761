"""What the model is to write as an answer, where the text that it is given ends: found by rendering.

    messages[:k], generation prompt   |<------ prompt ------>|
    messages[:k + 1]                  |<------ prompt ------>|<-- continuation -->|

The finished answer shows what is to be generated: its words, what ends it, and the reasoning that a template may drop
from history. Not every template begins it with the prompt, so these ways are tried in order:

    as it is written        the finished answer begins with the prompt
    without its reasoning   it does so without the reasoning, for which the prompt leaves no place
    in place of a mark      the prompt opens a block for reasoning; where the template writes some, a mark shows up
    in an open block        the prompt ends with <think>, finished answers show none: closed in the way it is opened
    behind an empty block   the prompt ends with <think></think>, which finished answers lack
    behind the same header  what differs stands further up (a system message in the last question alone): between the
                            question's words and those of a finished answer stands the prompt's own end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gguflora.data.reasoning import Block, closed_block, empty_block, open_block, with_reasoning_apart
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate

Row = dict[str, Any]
"""A message as templates read it."""

_LAST_PRIVATE = 0x10FFFD


@dataclass(frozen=True)
class Continuation:
    """What the model is given, and what it is to write.

    Attributes:
        text: from the end of the prompt on; what the template puts behind the answer stands there too.
        no_reasoning: there is a place for reasoning before the answer, which stays empty.
    """

    prompt: str
    text: str
    no_reasoning: bool


@dataclass(frozen=True)
class _Asked:
    """An answer and what stands before it.

    Attributes:
        block: of reasoning, that the prompt leaves open.
        render: messages -> text.
    """

    before: Sequence[Row]
    row: Row
    prompt: str
    block: Block | None
    render: Callable[[Sequence[Row]], str]

    @property
    def reasoning(self) -> str:
        return str(self.row.get("reasoning_content", "")).strip("\n")

    def finished(self, **changes: str) -> str:
        """The conversation with the answer as its last message; reasoning that is changed to nothing is left out."""
        return self.render([*self.before, _changed(self.row, changes)])

    def tried(self, rows: Sequence[Row]) -> str:
        """As rendered; nothing where the template refuses what only we put into the messages."""
        try:
            return self.render(rows)
        except DataError:
            return ""

    def marks(self, count: int) -> list[str]:
        """Private characters that stand nowhere in the text: they show where a template puts what they stand for."""
        used = set(self.prompt + self.finished())
        return [mark for mark in map(chr, range(_LAST_PRIVATE, _LAST_PRIVATE - 2**15, -1)) if mark not in used][:count]


def continuation_of(
    before: Sequence[Row], row: Row, switches: dict[str, Any], template: ChatTemplate
) -> Continuation | str:
    """How an answer is generated; or, as part of a sentence about the template, why that can't be found out.

    Args:
        before: the messages before it.
        row: the answer.
        switches: what the template is given besides: the tools.
        template: the base's.

    Raises:
        DataError: the template refuses the messages.
    """
    prompt = template.render(before, add_generation_prompt=True, **switches)
    asked = _Asked(before, row, prompt, open_block(prompt), lambda rows: template.render(rows, **switches))
    last_word = (row["content"].split() or [""])[-1]
    for way in _WAYS:
        text = way(asked)
        if text is not None and last_word in text:  # Devstral leaves the answer out beside reasoning
            place = way is _in_place_of_a_mark or asked.block or empty_block(text)
            return Continuation(prompt, text, bool(place) and not asked.reasoning)
    finished = asked.finished()
    if finished.startswith(prompt):
        return "leaves out what it says"
    same = _common_length(finished, prompt)
    return f"opens it with {prompt[same : same + 40]!r} but writes it, once finished, as {finished[same : same + 40]!r}"


def split_reasoning(rows: Sequence[Row], switches: dict[str, Any], template: ChatTemplate) -> list[Row]:
    """The conversation, with the reasoning apart of answers that begin with it where the model is asked to go on from
    the opening of such a block.
    """
    split: list[Row] = []
    for row in rows:
        block = None
        if row["role"] == "assistant" and row["content"].lstrip().startswith(("<", "[")):
            block = open_block(template.render(split, add_generation_prompt=True, **switches))
        split.append(with_reasoning_apart(row, block) if block else row)
    return split


def _as_it_is_written(asked: _Asked) -> str | None:
    finished, block = asked.finished(), asked.block
    if not finished.startswith(asked.prompt):
        return None
    text = finished[len(asked.prompt) :]
    closed = closed_block(asked.prompt)
    if closed:  # DeepSeek V3.2 closes it once more
        text = text.removeprefix(closed.closing)
    if block and block.closing not in text:  # Nemotron Nano v2 takes the answer itself for the end of the reasoning
        return block.ended(asked.reasoning) + text
    if not asked.reasoning or asked.reasoning.strip() in text:
        return text
    if block and text.lstrip().startswith(block.closing):  # DeepSeek V3.1
        return asked.reasoning + ("" if text[:1].isspace() else block.gap) + text
    return _filled(text, asked.reasoning)


def _without_its_reasoning(asked: _Asked) -> str | None:
    if asked.block or not asked.reasoning:
        return None
    finished = asked.finished(reasoning_content="")
    return finished[len(asked.prompt) :] if finished.startswith(asked.prompt) else None


def _in_place_of_a_mark(asked: _Asked) -> str | None:
    mark, said = asked.marks(2)
    shown = asked.tried([*asked.before, _changed(asked.row, {"reasoning_content": mark})])
    same = _common_length(shown, asked.prompt)
    text = shown[same:]
    if not text.lstrip().startswith(mark):
        return None
    if same < len(asked.prompt):  # the finished answer lacks what opens the block; the prompt must not close it as well
        both = asked.tried([*asked.before, _changed(asked.row, {"reasoning_content": mark, "content": said})])
        closing = both.partition(mark)[2].partition(said)[0].strip()
        if not closing or closing in asked.prompt[same:]:
            return None
    if not asked.reasoning:
        return text.replace(mark, "", 1)
    finished = asked.finished()
    return finished[same:] if finished.startswith(asked.prompt[:same]) else None


def _in_an_open_block(asked: _Asked) -> str | None:
    block, finished = asked.block, asked.finished(reasoning_content="")
    if not block or not finished.startswith(asked.prompt[: block.start]):
        return None
    text = finished[block.start :].removeprefix(block.opening)
    if text.lstrip().startswith(block.closing):
        return asked.reasoning + block.gap + text.lstrip()
    return block.ended(asked.reasoning) + text


def _behind_an_empty_block(asked: _Asked) -> str | None:
    block, finished = closed_block(asked.prompt), asked.finished(reasoning_content="")
    if not block or not finished.startswith(asked.prompt[: block.start]):
        return None
    text = finished[block.start :]
    return None if text.startswith(block.opening) else ("" if block.behind else block.distance) + text


def _behind_the_same_header(asked: _Asked) -> str | None:
    if not asked.before:
        return None
    question, said = asked.marks(2)
    *before, last = asked.before
    row = asked.row | {"content": said}
    header = asked.tried([*before, last | {"content": question}, row]).partition(question)[2].partition(said)[0]
    beginning, finished = asked.tried([*asked.before, row]).partition(said)[0], asked.finished()
    if not (header and beginning.endswith(header) and finished.startswith(beginning)):
        return None
    if asked.prompt.endswith(header):
        return finished[len(beginning) :]
    unasked = asked.tried(asked.before)  # the same without what opens an answer
    opening = asked.prompt.removeprefix(unasked) if unasked and asked.prompt.startswith(unasked) else ""
    if not opening or opening not in header:
        return None
    return finished[len(beginning) - len(header) + header.index(opening) + len(opening) :]


_WAYS = (
    _as_it_is_written,
    _without_its_reasoning,
    _in_place_of_a_mark,
    _in_an_open_block,
    _behind_an_empty_block,
    _behind_the_same_header,
)


def _changed(row: Row, changes: dict[str, str]) -> Row:
    changed = row | changes
    return {key: value for key, value in changed.items() if value or key != "reasoning_content"}


def _filled(text: str, reasoning: str) -> str:
    """`text` with the reasoning in the block that it begins with, where that is empty (Kimi K2 Thinking)."""
    block = empty_block(text)
    if not block:
        return text
    line = "\n" if block.gap else ""
    begun = block.start + len(block.opening)
    end = text.index(block.closing, begun)
    return f"{text[:begun]}{line}{reasoning}{line}{text[end:]}"


def _common_length(one: str, other: str) -> int:
    """Characters that both begin with."""
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
