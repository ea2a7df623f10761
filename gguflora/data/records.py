"""A record of a dataset file becomes an Example: the shapes that are known, and which one a record has.

| shape         | keys                                                |
|---------------|-----------------------------------------------------|
| messages      | messages: [{role, content}, ...], and tools if any  |
| conversations | conversations: [{from, value}, ...]                 |
| completion    | prompt, completion                                  |
| instruction   | instruction, output, and input if any               |
| chat          | user, assistant, and system if any                  |
| preference    | chosen, rejected, and prompt if any                 |
| OpenAI's      | input: {messages}, preferred_output                 |
| text          | text                                                |

The last three give way to another shape that a record has too. Of a preference the chosen side is trained; its parts
may be texts or messages. A message may have reasoning_content (or thinking) and tool_calls, or name and tool_call_id,
as in llama-server's requests. Each record may have a `weight`. Other keys of a record (an id, a source) say nothing
that is trained and are passed over, but not those of REFUSED_KEYS, which would change what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguflora.data.example import Completion, Conversation, Example, Message, message_of
from gguflora.data.rows import rows_of, switches_of
from gguflora.data.tools import read_tools
from gguflora.errors import DataError

Record = Mapping[str, Any]

REFUSED_KEYS = frozenset({"functions", "function_call"})
TOOL_KEYS = frozenset({"tools", "tool_calls", "reasoning_content", "thinking"})  # read where `messages` stand alone
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class Shape:
    """A way to write an example as a JSON object.

    Attributes:
        gives_way: to any other shape that fits the same record.
    """

    name: str
    needed: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Record], Conversation | Completion]
    gives_way: bool = False

    def fits(self, record: Record) -> bool:
        """Whether `record` has every key that this shape needs."""
        return self.needed <= record.keys()

    def __str__(self) -> str:
        optional = "".join(f" (and {key})" for key in sorted(self.optional))
        return " + ".join(sorted(self.needed)) + optional


def read_record(record: object, source: str, shapes: tuple[Shape, ...] | None = None) -> Example:
    """The example that a decoded JSON value stands for.

    Args:
        record: what json gave for the record.
        source: "file:line", kept in the example and put before each error.
        shapes: those that are allowed; all without it.

    Raises:
        DataError: no known shape, two at once, or a value in it that can't be used.
    """
    try:
        if not isinstance(record, dict):
            raise DataError(f"the record is {_kind(record)}; it must be a JSON object.")
        shape = _shape_of(record, shapes or SHAPES)
        _refuse_keys(record, REFUSED_KEYS | (TOOL_KEYS - shape.optional))
        content = shape.read(record)
        return Example(content, _weight(record), source)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def write_record(example: Example) -> dict[str, Any]:
    """The JSON object that read_record reads back as `example`."""
    match example.content:
        case Conversation(messages) as conversation:
            record: dict[str, Any] = {"messages": rows_of(messages), **switches_of(conversation)}
        case Completion(prompt, completion):
            record = {"prompt": prompt, "completion": completion}
    return record if example.weight == 1 else {**record, "weight": example.weight}


def _shape_of(record: Record, shapes: tuple[Shape, ...]) -> Shape:
    fitting = [shape for shape in shapes if shape.fits(record)]
    fitting = [shape for shape in fitting if not shape.gives_way] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(shape.name for shape in fitting)
        raise DataError(f"the record can be read as {names}; keep the keys of one of them.")
    found = ", ".join(repr(key)[:40] for key in list(record)[:10]) or "none"
    known = "; ".join(map(str, shapes))
    raise DataError(f"the record's keys are {found}; write it with the keys of one of: {known}.")


def _weight(record: Record) -> float:
    weight = record.get("weight")
    return 1.0 if weight is None else weight  # Example checks that it is a number


def _refuse_keys(record: Record, refused: frozenset[str]) -> None:
    for key in sorted(refused & record.keys()):
        if record[key]:
            raise DataError(f"{key!r} can't be trained and must not get lost unseen; take it out of the record.")


def _messages(record: Record) -> Conversation:
    conversation = _conversation(record["messages"], "messages", "role", "content")
    return Conversation(conversation.messages, read_tools(record.get("tools") or ()))


def _conversations(record: Record) -> Conversation:
    return _conversation(record["conversations"], "conversations", "from", "value")


def _conversation(turns: object, key: str, role_key: str, content_key: str) -> Conversation:
    return Conversation(_turns(turns, key, role_key, content_key))


def _turns(turns: object, key: str, role_key: str = "role", content_key: str = "content") -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise DataError(f"{key!r} is {_kind(turns)}; it must be an array of objects with {role_key} and {content_key}.")
    return tuple(_turn(turn, f"{key}[{index}]", role_key, content_key) for index, turn in enumerate(turns))


def _turn(turn: object, where: str, role_key: str, content_key: str) -> Message:
    calls = isinstance(turn, dict) and role_key == "role" and turn.get("tool_calls")
    needed = {role_key} if calls else {role_key, content_key}
    if not isinstance(turn, dict) or not needed <= turn.keys():
        raise DataError(f"{where} must be an object with the keys {role_key} and {content_key}.")
    _refuse_keys(turn, REFUSED_KEYS if role_key == "role" else REFUSED_KEYS | TOOL_KEYS)
    if turn.get("weight") is not None:
        raise DataError(f"{where} has a weight of its own; only whole examples have one.")
    try:
        if role_key == "role":
            return message_of(turn)
        return Message(_sharegpt_role(turn[role_key]), turn[content_key])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _sharegpt_role(role: object) -> str:
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise DataError(f"the role {role!r} is not known; use {', '.join(SHAREGPT_ROLES)}.")
    return SHAREGPT_ROLES[role]


def _completion(record: Record) -> Completion:
    return Completion(record["prompt"], record["completion"])


def _instruction(record: Record) -> Conversation | Completion:
    texts = _texts(record, "instruction", "output", optional="input")
    return Example.instruction(texts["instruction"], texts["input"], texts["output"]).content


def _chat(record: Record) -> Conversation | Completion:
    texts = _texts(record, "user", "assistant", optional="system")
    return Example.chat(texts["system"], texts["user"], texts["assistant"]).content


def _preference(record: Record) -> Conversation | Completion:
    """The chosen side, after the prompt; `chosen` as messages may hold the prompt already."""
    prompt, chosen = record.get("prompt"), record["chosen"]
    if isinstance(chosen, str):
        if isinstance(prompt, str):
            return Completion(prompt, chosen)
        if prompt is None:
            raise DataError("'chosen' is text and there is no prompt; give the prompt, or write both as messages.")
        return Conversation((*_turns(prompt, "prompt"), Message("assistant", chosen)))
    answer = _turns(chosen, "chosen")
    if prompt is None:
        return Conversation(answer)
    if not isinstance(prompt, str):
        before = _turns(prompt, "prompt")
        return Conversation(answer if answer[: len(before)] == before else before + answer)
    asked = [message.content for message in answer if message.role == "user"]
    if asked and prompt not in asked:
        raise DataError("'chosen' has messages of the user, but none is the prompt; leave the prompt out, or them.")
    return Conversation(answer if asked else (Message("user", prompt), *answer))


def _openai_preference(record: Record) -> Conversation:
    given = record["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise DataError(f"'input' is {_kind(given)}; beside preferred_output it must be an object with messages.")
    _refuse_keys(given, REFUSED_KEYS | TOOL_KEYS)
    before = _turns(given["messages"], "input.messages")
    return Conversation(before + _turns(record["preferred_output"], "preferred_output"))


def _text(record: Record) -> Completion:
    if not isinstance(record["text"], str):
        raise DataError(f"'text' is {_kind(record['text'])}; it must be text.")
    return Completion("", record["text"])


def _texts(record: Record, *needed: str, optional: str) -> dict[str, str]:
    """Values that are known to be text; an optional one that is absent or null is empty."""
    values = {key: record[key] for key in needed}
    values[optional] = "" if record.get(optional) is None else record[optional]
    for key, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{key!r} is {_kind(value)}; it must be text.")
    return values


def _kind(value: object) -> str:
    """A JSON value's kind, in JSON's words."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


INSTRUCTION = Shape("instruction", frozenset({"instruction", "output"}), frozenset({"input"}), _instruction)
CONVERSATIONS = Shape("conversations", frozenset({"conversations"}), frozenset(), _conversations)
SHAPES = (
    Shape("messages", frozenset({"messages"}), frozenset({"tools"}), _messages),
    CONVERSATIONS,
    Shape("completion", frozenset({"prompt", "completion"}), frozenset(), _completion),
    INSTRUCTION,
    Shape("chat", frozenset({"user", "assistant"}), frozenset({"system"}), _chat),
    Shape("preference", frozenset({"chosen", "rejected"}), frozenset({"prompt"}), _preference, gives_way=True),
    Shape(
        "OpenAI's preference", frozenset({"input", "preferred_output"}), frozenset(), _openai_preference, gives_way=True
    ),
    Shape("text", frozenset({"text"}), frozenset(), _text, gives_way=True),
)
KEYS = tuple(sorted({"weight"}.union(*(shape.needed | shape.optional for shape in SHAPES))))
"""Every key that can be part of an example."""
OPTIONAL_KEYS = frozenset({"weight", "input", "system", "tools"})
"""Those without which a record is read all the same."""
