"""An Example holds content alone, and refuses what could not be trained as written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gguflora.data.example import Completion, Conversation, Example, Message
from gguflora.errors import DataError


def test_instruction_with_input_is_a_user_turn_with_a_blank_line_between():
    example = Example.instruction("Translate the following text", "Hello world", "Hola mundo")
    assert example.content == Conversation(
        (Message("user", "Translate the following text\n\nHello world"), Message("assistant", "Hola mundo"))
    )


@pytest.mark.parametrize("input", ["", None])
def test_instruction_without_input_is_the_instruction_alone(input: str | None):
    example = Example.instruction("Say hello", input, "Hello")
    assert example.content == Conversation((Message("user", "Say hello"), Message("assistant", "Hello")))


def test_chat_has_system_user_and_assistant():
    example = Example.chat("You are a helpful assistant", "What is the capital of France?", "Paris.")
    assert [(m.role, m.content) for m in example.content.messages] == [
        ("system", "You are a helpful assistant"),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
    ]


@pytest.mark.parametrize("system", ["", None])
def test_chat_without_system_message_has_no_system_turn(system: str | None):
    assert Example.chat(system, "Hi", "Hello") == Example.messages(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    )


def test_completion_keeps_both_texts_as_they_are():
    assert Example.completion("def f(n):", "\n    return n").content == Completion("def f(n):", "\n    return n")


def test_source_is_no_part_of_equality_and_weight_is():
    content = Completion("a", "b")
    assert Example(content, 1.0, "a.jsonl:1") == Example(content, 1.0, "b.jsonl:9")
    assert Example(content, 1.0) != Example(content, 0.5)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, -math.inf, True, "1", None])
def test_a_weight_that_is_no_number_from_zero_up_is_refused(weight: Any):
    with pytest.raises(DataError, match=r"the weight is .*; it must be a number from 0"):
        Example.completion("a", "b", weight=weight)


def test_weight_zero_is_allowed():
    assert Example.completion("a", "b", weight=0).weight == 0


@pytest.mark.parametrize("role", ["User", "", "developer", None, 1])
def test_other_roles_are_refused_by_name(role: Any):
    with pytest.raises(DataError, match=r"the role .* is not known; use system, user, assistant"):
        Message(role, "text")


@pytest.mark.parametrize(
    "make",
    [
        lambda text: Message("user", text),
        lambda text: Example.instruction(text, "in", "out"),
        lambda text: Example.instruction("do", "in", text),
        lambda text: Example.chat(None, text, "answer"),
        lambda text: Example.completion(text, "completion"),
        lambda text: Example.completion("prompt", text),
    ],
)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is null; it must be text"),
        (3, "is of type int; it must be text"),
        ("smile \ud83d!", r"half of a surrogate pair, '\\ud83d', at character 7"),
    ],
)
def test_content_that_is_no_whole_text_is_refused(make: Any, text: Any, why: str):
    with pytest.raises(DataError, match=why):
        make(text)


@pytest.mark.parametrize("text", ["\x00", "\u2028", "👩‍👩‍👧", "\r\n", "a\u0301", "\ufeff"])
def test_odd_but_whole_text_is_kept_exactly(text: str):
    assert Example.completion(text, text).content == Completion(text, text)


def test_a_conversation_without_messages_or_with_too_many_is_refused():
    with pytest.raises(DataError, match="has 0 messages"):
        Example.messages([])
    with pytest.raises(DataError, match="has 4097 messages"):
        Example.messages([Message("user", "x")] * 4097)


def test_a_message_without_role_or_content_is_refused():
    with pytest.raises(DataError, match="a message has no content; give it both"):
        Example.messages([{"role": "user"}])


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a\n", "b"], "a\n\nb"),
        (["", "b"], "b"),
        (["a", "", "b"], "a\n\nb"),
        (["a", ""], "a\n"),
    ],
)
def test_content_in_parts_is_their_text_line_by_line(parts: list[str], text: str):
    """As concat_content_parts does it in llama.cpp's common/chat.cpp, read by hand."""
    content = [{"type": "text", "text": part} for part in parts]
    [message] = Example.messages([{"role": "user", "content": content}]).content.messages  # type: ignore[union-attr]
    assert message == Message("user", text)
