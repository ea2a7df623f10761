"""What the user wants learned: a conversation, or a prompt with its completion. Text alone, no tokens, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gguflora.errors import DataError

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 4096  # in one conversation


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (system, user or assistant) and what.

    Raises:
        DataError: another role, or content that is not text that UTF-8 can hold.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"the role {self.role!r} is not known; use {', '.join(ROLES)}.")
        _require_text(f"the content of a message of the {self.role}", self.content)


@dataclass(frozen=True)
class Conversation:
    """Messages in order; the model learns every message of the assistant.

    Raises:
        DataError: there is no message, or there are more than MAX_MESSAGES.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.messages) <= MAX_MESSAGES:
            raise DataError(
                f"a conversation has {len(self.messages)} messages; give from 1 to {MAX_MESSAGES} in one example."
            )


@dataclass(frozen=True)
class Completion:
    """A text to continue, without a chat template; the model learns the completion.

    Raises:
        DataError: one of them is not text that UTF-8 can hold.
    """

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        _require_text("the prompt", self.prompt)
        _require_text("the completion", self.completion)


@dataclass(frozen=True)
class Example:
    """One thing to learn. Two examples are equal when content and weight are.

    Attributes:
        weight: how much its tokens count in the loss of a step; 0 leaves the example out.
        source: where it came from ("notes.jsonl:12"), for messages to people.

    Raises:
        DataError: the weight is negative or no finite number.
    """

    content: Conversation | Completion
    weight: float = 1.0
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not (number and 0 <= self.weight < math.inf):
            raise DataError(f"the weight is {self.weight!r}; it must be a number from 0 (leave out) upwards.")

    @classmethod
    def messages(cls, messages: Sequence[Message | Mapping[str, str]], *, weight: float = 1.0) -> Example:
        """A conversation from Messages, or from mappings that have the keys role and content."""
        return cls(Conversation(tuple(_message(message) for message in messages)), weight)

    @classmethod
    def instruction(cls, instruction: str, input: str | None, output: str, *, weight: float = 1.0) -> Example:
        """A user turn of `instruction`, a blank line and `input` where there is one; `output` is the answer."""
        _require_text("the instruction", instruction)
        _require_text("the input", input or "")
        question = f"{instruction}\n\n{input}" if input else instruction
        return cls.chat(None, question, output, weight=weight)

    @classmethod
    def chat(cls, system: str | None, user: str, assistant: str, *, weight: float = 1.0) -> Example:
        """One question and its answer, after a system message unless `system` is empty or None."""
        opening = (Message("system", system),) if system else ()
        return cls(Conversation((*opening, Message("user", user), Message("assistant", assistant))), weight)

    @classmethod
    def completion(cls, prompt: str, completion: str, *, weight: float = 1.0) -> Example:
        """A text to continue and how it goes on, tokenised as they are."""
        return cls(Completion(prompt, completion), weight)


def _message(message: Message | Mapping[str, str]) -> Message:
    if isinstance(message, Message):
        return message
    missing = [key for key in ("role", "content") if key not in message]
    if missing:
        raise DataError(f"a message has no {' and no '.join(missing)}; give it both role and content.")
    return Message(message["role"], message["content"])


def _require_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        kind = "null" if text is None else f"of type {type(text).__name__}"
        raise DataError(f"{what} is {kind}; it must be text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair, {text[error.start]!a}, at character {error.start + 1}; "
            "write the whole character."
        ) from error
