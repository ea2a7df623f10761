"""Where each answer starts in the text that the model's chat template writes, and what stands there.

    messages[:k], generation prompt   |<------ prompt ------>|
    messages[:k + 1]                  |<------ prompt ------>|<- finished answer ->|
    all messages                      |<------ prompt ------>|<- answer, and what follows up to the next one ...

The lower two must begin with the first. Where they don't (a template that opens an answer with text which a finished
one lacks), training on the text would teach something else than the model is asked for, so the example is refused.
The finished answer shows how it is generated: what ends it, and the reasoning that a template may drop from history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gguflora.data.example import Message
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate


@dataclass(frozen=True)
class Turn:
    """One answer of the assistant, as text.

    Attributes:
        content: what the message says.
        finished: what follows the point where generation starts when the answer is the last message.
        piece: what follows it in the whole conversation, up to where the next answer's generation starts.
    """

    content: str
    finished: str
    piece: str


def split_turns(messages: Sequence[Message], template: ChatTemplate) -> tuple[str, tuple[Turn, ...]]:
    """The text up to the first answer, and every answer; the prompt and the pieces make up the whole rendering.

    Args:
        messages: the whole conversation.
        template: the base's.

    Raises:
        DataError: there is no answer, the template refuses the messages, or its text can't be cut at the answers.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise DataError("no message is the assistant's, so there is nothing to train; add the answer.")
    rows = [{"role": message.role, "content": message.content} for message in messages]
    full = template.render(rows)
    starts, finished = [], []
    for number, index in enumerate(answers, 1):
        prompt = template.render(rows[:index], add_generation_prompt=True)
        alone = template.render(rows[: index + 1]) if index + 1 < len(rows) else full
        _require_start(alone, prompt, number, "once finished")
        _require_start(full, prompt, number, "once later messages follow")
        starts.append(len(prompt))
        finished.append(alone[len(prompt) :])
    pieces = [full[start:end] for start, end in pairwise([*starts, len(full)])]
    turns = (
        Turn(messages[index].content, text, piece) for index, text, piece in zip(answers, finished, pieces, strict=True)
    )
    return full[: starts[0]], tuple(turns)


def _require_start(text: str, prompt: str, number: int, when: str) -> None:
    if text.startswith(prompt):
        return
    differing = (index for index, (one, other) in enumerate(zip(text, prompt, strict=False)) if one != other)
    same = next(differing, len(text))
    raise DataError(
        f"the chat template opens answer {number} with {prompt[same : same + 40]!r} but writes it, {when}, as "
        f"{text[same : same + 40]!r}, so it can't be trained as it is generated; use a base with another template, "
        "or prompt and completion."
    )
