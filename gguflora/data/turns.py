"""Where each answer starts in the text that the model's chat template writes, and what stands there.

    messages[:k], generation prompt   |<------ prompt ------>|
    messages[:k + 1]                  |<------ prompt ------>|<- finished answer ->|
    all messages                      |<------ prompt ------>|<- answer, and what follows up to the next one ...

The lower two must begin with the first. Where they don't (a template that opens an answer with text which a finished
one lacks), training on the text would teach something else than the model is asked for. The finished answer shows how
it is generated: what ends it, and the reasoning that a template may drop from history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguflora.tokenizer import ChatTemplate

Rows = Sequence[dict[str, Any]]
"""Messages as templates read them."""


@dataclass(frozen=True)
class Turn:
    """One answer of the assistant, where generation can be told to start.

    Attributes:
        number: among the conversation's answers, from 1.
        index: of its message.
        start: where its generation starts in the whole text.
        finished: what follows that point when the answer is the last message.
    """

    number: int
    index: int
    start: int
    finished: str


@dataclass(frozen=True)
class Script:
    """A conversation as the template writes it.

    Attributes:
        text: the whole of it.
        turns: the answers that stand in it behind what the model is given before it generates them.
        problems: what is wrong with each other answer, by its number.
    """

    text: str
    turns: tuple[Turn, ...]
    problems: dict[int, str]


def write_script(rows: Rows, switches: dict[str, Any], template: ChatTemplate, *, last_only: bool = False) -> Script:
    """Render a conversation and find its answers in the text.

    Args:
        rows: the whole conversation.
        switches: what the template is given besides: the tools.
        template: the base's.
        last_only: look for the last answer alone.

    Raises:
        DataError: the template refuses the messages.
    """
    answers = list(enumerate((index for index, row in enumerate(rows) if row["role"] == "assistant"), 1))
    text = template.render(rows, **switches)
    turns, problems = [], {}
    for number, index in answers[-1:] if last_only else answers:
        prompt = template.render(rows[:index], add_generation_prompt=True, **switches)
        alone = template.render(rows[: index + 1], **switches) if index + 1 < len(rows) else text
        problem = _difference(alone, prompt, number, "once finished")
        problem = problem or _difference(text, prompt, number, "once later messages follow")
        if problem:
            problems[number] = problem
        else:
            turns.append(Turn(number, index, len(prompt), alone[len(prompt) :]))
    return Script(text, tuple(turns), problems)


def text_behind(rows: Rows, switches: dict[str, Any], template: ChatTemplate) -> str:
    """What the template writes behind the last message once the user speaks: where it ends a turn by the next one."""
    before = template.render(rows, **switches)
    after = template.render([*rows, {"role": "user", "content": "x"}], **switches)
    return after.removeprefix(before) if after.startswith(before) else ""


def _difference(text: str, prompt: str, number: int, when: str) -> str:
    """Why `text` does not begin with `prompt`; empty if it does."""
    if text.startswith(prompt):
        return ""
    differing = (index for index, (one, other) in enumerate(zip(text, prompt, strict=False)) if one != other)
    same = next(differing, len(text))
    return (
        f"the chat template opens answer {number} with {prompt[same : same + 40]!r} but writes it, {when}, as "
        f"{text[same : same + 40]!r}, so it can't be trained as it is generated; give the template other options "
        "(--template-option enable_thinking=false, where it has that one), another --chat-template, or prompt and "
        "completion."
    )
