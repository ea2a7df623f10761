"""What the user wants learned: a conversation, or a prompt with its completion. Text alone, no tokens, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguflora.data.tools import ToolCall, read_tool_calls, read_tools
from gguflora.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 4096  # in one conversation


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (system, user, assistant or tool) and what.

    Attributes:
        reasoning: what the assistant thinks before it answers.
        tool_calls: functions that the assistant calls.
        name: of the tool that answers; tool_call_id: the call that it answers. Both may be empty.

    Raises:
        DataError: another role, content that is not text that UTF-8 can hold, or one of the assistant's fields in a
            message of someone else.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"the role {self.role!r} is not known; use {', '.join(ROLES)}.")
        _require_text(f"the content of a message of the {self.role}", self.content)
        for name in ("reasoning", "name", "tool_call_id"):
            _require_text(f"the {name} of a message of the {self.role}", getattr(self, name))
        if self.role != "assistant" and (self.reasoning or self.tool_calls):
            raise DataError(f"a message of the {self.role} has reasoning or tool calls; only the assistant's may.")

    def texts(self) -> tuple[str, ...]:
        """All that the message says, part by part."""
        return (
            self.content,
            self.reasoning,
            *(text for call in self.tool_calls for text in (call.name, call.arguments)),
        )

    def is_empty(self) -> bool:
        """Whether it says nothing and calls nothing."""
        return not (self.content.strip() or self.tool_calls)


@dataclass(frozen=True)
class Conversation:
    """Messages in order; the model learns every message of the assistant.

    Attributes:
        tools: that the assistant may call, each as the JSON text that `read_tools` makes.

    Raises:
        DataError: there is no message, or there are more than MAX_MESSAGES.
    """

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()

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
    def messages(
        cls,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        weight: float = 1.0,
    ) -> Example:
        """A conversation from Messages, or from mappings as `message_of` reads them; `tools` may be called in it."""
        return cls(Conversation(tuple(map(message_of, messages)), read_tools(tools)), weight)

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


def message_of(message: Message | Mapping[str, Any]) -> Message:
    """A message from a mapping with the keys of llama-server's requests.

    These are role, content (may be null beside tool calls), reasoning_content (or thinking), tool_calls, name and
    tool_call_id; other keys are passed over. Content may be a list of parts of text, which are joined by line breaks as
    llama-server does it for a template that reads text (concat_content_parts in llama.cpp's common/chat.cpp).

    Raises:
        DataError: role or content is missing, or a value can't be used.
    """
    if isinstance(message, Message):
        return message
    calls = read_tool_calls(message.get("tool_calls") or ())
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = _joined(content)
        message = {**message, "content": content}
    if content is None and calls:
        message, content = {**message, "content": ""}, ""
    missing = [key for key in ("role", "content") if key not in message]
    if missing:
        raise DataError(f"a message has no {' and no '.join(missing)}; give it both role and content.")
    reasoning = message.get("reasoning_content") or message.get("thinking") or ""
    name, answers = message.get("name") or "", message.get("tool_call_id") or ""
    if message["role"] != "tool":
        name = answers = ""  # a name of a person says nothing that is trained
    return Message(message["role"], content, reasoning, calls, name, answers)  # type: ignore[arg-type]


def _joined(parts: Sequence[object]) -> str:
    """The text of content that is given in parts."""
    joined = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            shown = f"a part of type {kind!r}" if isinstance(kind, str) and kind != "text" else "a part that is no text"
            raise DataError(f"a message's content has {shown}; only parts of text can be trained.")
        joined += f"\n{text}" if joined else text
    return joined


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
