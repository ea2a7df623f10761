r"""Blocks of reasoning as chat templates write them: one left open, one with nothing in it. Text alone.

A generation prompt that ends with `<think>\n` leaves a block open: the model writes its thoughts, closes the block and
answers. llama-server takes what stands before the closing text as reasoning, with white space around it or without
(analyze_reasoning::build_parser in llama.cpp's common/chat-auto-parser-generator.cpp).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

# <think>, <seed:think>, <think:opensource>, [THINK]
_NAME = r"(?P<name>(?:\w+:)?(?:think|thinking|thought|reasoning|THINK)(?::\w+)?)"
# What opens a block and what closes it, as patterns, and what closes it as text.
_STYLES = (
    (f"<{_NAME}>", r"</(?P=name)>", "</{name}>"),
    (rf"\[{_NAME}\]", r"\[/(?P=name)\]", "[/{name}]"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", "<|END_THINKING|>"),  # Cohere
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>", "<|close|>think<|sep|>"),  # Kimi K3
    (r"<\|channel>thought\n", r"<channel\|>", "<channel|>"),  # Gemma 4
)
_ROOM = 256  # characters: a block without reasoning is shorter
_WORDS = ("think", "thought", "reasoning", "THINK")  # each style has one of them


@dataclass(frozen=True)
class Block:
    """A block of reasoning in a text.

    Attributes:
        start: where its opening stands.
        opening, closing: what it begins and ends with.
        gap: the white space behind the opening.
        behind: the white space behind the closing; empty while the block is open.
    """

    start: int
    opening: str
    closing: str
    gap: str
    behind: str = ""

    @property
    def distance(self) -> str:
        """What stands between the block and the answer, as Qwen3 and DeepSeek R1 write it: a blank line, or nothing
        where the block's own texts stand on no lines of their own.
        """
        return "\n\n" if "\n" in self.gap else ""

    def ended(self, reasoning: str) -> str:
        """What goes on from the open block up to the answer: reasoning (perhaps none) and the closing."""
        return f"{reasoning}{self.gap}{self.closing}{self.distance}"


def open_block(text: str) -> Block | None:
    """The block that `text` ends in, if nothing stands in it yet."""
    return _at_end(text, r"(?P<gap>\s*)(?P<behind>)\Z")


def closed_block(text: str) -> Block | None:
    """The block that `text` ends with, if nothing stands in it."""
    return _at_end(text, r"(?P<gap>\s*){closing}(?P<behind>\s*)\Z")


def empty_block(text: str) -> Block | None:
    """The block that `text` begins with, if nothing stands in it."""
    return _find(text[:_ROOM], r"\A\s*", r"(?P<gap>\s*){closing}(?P<behind>\s*)")


def with_reasoning_apart(row: dict[str, Any], block: Block) -> dict[str, Any]:
    """A message whose content begins with its reasoning in such a block, as many datasets have it, with the two apart.

    Args:
        row: of the assistant, as templates read it.
        block: that the model is asked to go on from.
    """
    before, opening, rest = row["content"].partition(block.opening)
    reasoning, closing, content = rest.partition(block.closing)
    if before.strip() or not (opening and closing) or row.get("reasoning_content"):
        return row
    apart = {"content": content.lstrip("\n"), "reasoning_content": reasoning.strip("\n")}
    return row | {key: value for key, value in apart.items() if value or key == "content"}


def _at_end(text: str, pattern: str) -> Block | None:
    block = _find(text[-_ROOM:], "", pattern)
    return replace(block, start=block.start + max(0, len(text) - _ROOM)) if block else None


def _find(text: str, before: str, after: str) -> Block | None:
    if not any(word in text for word in _WORDS):
        return None
    for opening, closing, spelled in _STYLES:
        found = re.search(f"{before}(?P<opening>{opening}){after.replace('{closing}', closing)}", text)
        if found:
            groups = found.groupdict()
            end = spelled.replace("{name}", groups.get("name", ""))
            return Block(found.start("opening"), groups["opening"], end, groups["gap"], groups["behind"])
    return None
