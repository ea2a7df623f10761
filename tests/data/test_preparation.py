"""Every example is either trained or counted under the reason why it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguflora.data.example import Completion, Example
from gguflora.data.preparation import filter_by_length, prepare
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer

# SmolLM2 encodes "a", "b" and its end token as one token each: 3 tokens.
THREE = Example.completion("a", "b")


def test_what_cannot_teach_is_left_out_and_counted_by_source(tokenizer: Tokenizer, template: ChatTemplate):
    examples = [
        THREE,
        Example(Completion("a", "b"), 0, "x.jsonl:2"),
        Example.completion("a", ""),
        Example.chat(None, "Hi", " \n"),
        Example.messages([{"role": "user", "content": "Hi"}]),
        Example.completion("a", "b " * 50),
        Example.completion("c", "d", weight=2),
    ]
    prepared = prepare(examples, tokenizer, template, max_length=50)
    assert [(one.source, one.weight) for one in prepared.encoded] == [("example 1", 1.0), ("example 7", 2.0)]
    assert prepared.skipped == {
        "weight 0": ("x.jsonl:2",),
        "empty answer": ("example 3", "example 4"),
        "no message of the assistant": ("example 5",),
        "longer than max_length": ("example 6",),
    }


def test_an_empty_answer_among_others_leaves_the_example_out(tokenizer: Tokenizer, template: ChatTemplate):
    turns = [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")]
    example = Example.messages([{"role": role, "content": content} for role, content in turns])
    assert prepare([THREE, example], tokenizer, template, 99).skipped == {"empty answer": ("example 2",)}


def test_max_length_is_in_tokens_and_inclusive_and_nothing_is_cut(tokenizer: Tokenizer, template: ChatTemplate):
    [encoded] = prepare([THREE], tokenizer, template, max_length=3).encoded
    assert len(encoded.tokens) == 3
    assert filter_by_length([THREE], tokenizer, template, 3) == [THREE]
    assert filter_by_length([THREE], tokenizer, template, 2) == []


def test_nothing_left_is_an_error_that_says_why(tokenizer: Tokenizer, template: ChatTemplate):
    zero = Example.completion("a", "b", weight=0)
    with pytest.raises(DataError) as refused:
        prepare([THREE, THREE, zero], tokenizer, template, max_length=2)
    assert str(refused.value) == (
        "No example is left to train (2 longer than max_length, 1 weight 0; the first is example 1); "
        "correct the data or raise max_length above 2."
    )
    with pytest.raises(DataError, match="There is no example to train"):
        prepare([], tokenizer, template, 10)


def test_an_example_that_cannot_be_encoded_stops_with_its_source(tokenizer: Tokenizer):
    endless = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    example = Example.chat(None, "Hi", "Hello")
    with pytest.raises(DataError, match=r"^example 2: the chat template writes no end-of-generation token"):
        prepare([THREE, example], tokenizer, endless, 99)
    with pytest.raises(DataError, match=r"^b.jsonl:8: the chat template"):
        prepare([THREE, replace(example, source="b.jsonl:8")], tokenizer, endless, 99)
