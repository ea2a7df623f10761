"""Records that are a preference or a text: what is trained of them, and what can't be used."""

from __future__ import annotations

from typing import Any

import pytest

from gguflora.data.example import Example
from gguflora.data.records import KEYS, OPTIONAL_KEYS, SHAPES, read_record
from gguflora.errors import DataError


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = said("user", "2 + 2?")
RIGHT, WRONG = said("assistant", "4"), said("assistant", "5")
SYSTEM = said("system", "Be brief")
CHAT = Example.chat(None, "2 + 2?", "4")

TRAINED: dict[str, tuple[dict[str, Any], Example]] = {
    "texts": ({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, Example.completion("2 + 2 =", " 4")),
    "prompt in messages": ({"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]}, CHAT),
    "messages alone": ({"chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]}, CHAT),
    "null prompt": ({"prompt": None, "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]}, CHAT),
    "prompt as text, answer as message": ({"prompt": "2 + 2?", "chosen": [RIGHT], "rejected": [WRONG]}, CHAT),
    "prompt as messages, answer as text": ({"prompt": [ASKED], "chosen": "4", "rejected": "5"}, CHAT),
    "prompt as text, again in chosen": (
        {"prompt": "2 + 2?", "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
        CHAT,
    ),
    "the same behind a system message": (
        {"prompt": "2 + 2?", "chosen": [SYSTEM, ASKED, RIGHT], "rejected": []},
        Example.chat("Be brief", "2 + 2?", "4"),
    ),
    "prompt as messages, again in chosen": (
        {"prompt": [SYSTEM, ASKED], "chosen": [SYSTEM, ASKED, RIGHT], "rejected": [SYSTEM, ASKED, WRONG]},
        Example.chat("Be brief", "2 + 2?", "4"),
    ),
    "scores and a weight": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9.0, "weight": 0.5},
        Example.completion("a", "b", weight=0.5),
    ),
    "OpenAI's": (
        {"input": {"messages": [ASKED], "tools": []}, "preferred_output": [RIGHT], "non_preferred_output": [WRONG]},
        CHAT,
    ),
    "text": ({"text": "Once upon a time.\n", "url": "..."}, Example.completion("", "Once upon a time.\n")),
    "text beside another shape": (
        {"text": "all of it", "prompt": "a", "completion": "b"},
        Example.completion("a", "b"),
    ),
    "preference beside messages": (
        {"prompt": "2 + 2?", "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG], "messages": [ASKED, RIGHT]},
        CHAT,
    ),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_is_trained_of_a_record(case: str):
    record, example = TRAINED[case]
    assert read_record(record, "d.jsonl:1") == example


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text without prompt": (
        {"chosen": "\n\nHuman: ...", "rejected": "..."},
        "d.jsonl:1: 'chosen' is text and there is no prompt; give the prompt, or write both as messages.",
    ),
    "another prompt": (
        {"prompt": "3 + 3?", "chosen": [ASKED, RIGHT], "rejected": []},
        "d.jsonl:1: 'chosen' has messages of the user, but none is the prompt; leave the prompt out, or them.",
    ),
    "a number as chosen": (
        {"prompt": "a", "chosen": 5, "rejected": "b"},
        "d.jsonl:1: 'chosen' is a number; it must be an array of objects with role and content.",
    ),
    "a number as prompt": (
        {"prompt": 5, "chosen": "a", "rejected": "b"},
        "d.jsonl:1: 'prompt' is a number; it must be an array of objects with role and content.",
    ),
    "a message without content": (
        {"chosen": [ASKED, {"role": "assistant"}], "rejected": []},
        "d.jsonl:1: chosen[1] must be an object with the keys role and content.",
    ),
    "tools in chosen": (
        {"chosen": [ASKED, RIGHT | {"tool_calls": [{}]}], "rejected": []},
        "d.jsonl:1: chosen[1]: a tool call must be an object of type function, with a function that has name and "
        "arguments.",
    ),
    "OpenAI's with tools": (
        {"input": {"messages": [ASKED], "tools": [{}]}, "preferred_output": [RIGHT]},
        "d.jsonl:1: 'tools' can't be trained and must not get lost unseen; take it out of the record.",
    ),
    "OpenAI's without messages": (
        {"input": "2 + 2?", "preferred_output": [RIGHT]},
        "d.jsonl:1: 'input' is text; beside preferred_output it must be an object with messages.",
    ),
    "chosen alone": (
        {"prompt": "a", "chosen": "b"},
        "d.jsonl:1: the record's keys are 'prompt', 'chosen'; write it with the keys of one of: ",
    ),
    "null text": ({"text": None}, "d.jsonl:1: 'text' is null; it must be text."),
    "text and preference": (
        {"text": "a", "chosen": [ASKED, RIGHT], "rejected": []},
        "d.jsonl:1: the record can be read as preference and text; keep the keys of one of them.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_used_is_said(case: str):
    record, message = REFUSED[case]
    with pytest.raises(DataError) as refused:
        read_record(record, "d.jsonl:1")
    assert str(refused.value).startswith(message)
    assert str(refused.value) == message or message.endswith(": ")


def test_the_keys_are_those_of_the_shapes():
    assert set(KEYS) == {"weight"} | {key for shape in SHAPES for key in shape.needed | shape.optional}
    optional = {key for shape in SHAPES for key in shape.optional}
    assert (optional | {"weight"}) - {"prompt"} == OPTIONAL_KEYS
