"""Every example is either trained or counted under the reason why it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguflora.config import Overlong, TrainOn
from gguflora.data import Named, prepare
from gguflora.data.example import Completion, Example
from gguflora.data.preparation import (
    LONG_DOCUMENTS,
    LOST_ANSWERS,
    LOST_REASONING,
    NO_REASONING,
    OWN_DOCUMENTS,
    WITHOUT_PLACE,
    filter_by_length,
)
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
        "weight 0": Named(1, ["x.jsonl:2"]),
        "empty answer": Named(2, ["example 3", "example 4"]),
        "no message of the assistant": Named(1, ["example 5"]),
        "longer than max_length": Named(1, ["example 6"]),
    }


def test_an_empty_answer_among_others_leaves_the_example_out(tokenizer: Tokenizer, template: ChatTemplate):
    turns = [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")]
    example = Example.messages([{"role": role, "content": content} for role, content in turns])
    assert prepare([THREE, example], tokenizer, template, 99).skipped == {"empty answer": Named(1, ["example 2"])}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def test_what_is_not_trained_as_it_stands_is_counted_by_source(tokenizer: Tokenizer, template: ChatTemplate):
    """The template drops the reasoning of earlier answers, so each has its own document; SmolLM2's writes none."""
    thinking = {**ANSWER, "reasoning_content": "hm"}
    plain = Example.messages([QUESTION, ANSWER] * 2)
    drops = Example.messages([QUESTION, thinking] * 2)
    prepared = prepare([plain, drops], tokenizer, ChatTemplate(CHATML), 99)
    assert prepared.altered == {OWN_DOCUMENTS: Named(1, ["example 2"])}
    trained = [tokenizer.decode(one.labels[one.labels >= 0].tolist()) for one in prepared.encoded]
    assert trained == ["b<|im_end|>b<|im_end|>", "<think>hm</think>b<|im_end|>", "<think>hm</think>b<|im_end|>"]
    assert prepare([plain, drops], tokenizer, template, 199).altered == {LOST_REASONING: Named(1, ["example 2"])}


def test_an_earlier_answer_that_can_not_be_trained_is_counted(tokenizer: Tokenizer):
    """The template opens the first answer alone with what no finished one has."""
    opens = "<|im_start|>assistant\n{% if messages | length == 1 %}<plan>{% endif %}"
    template = ChatTemplate(CHATML.replace("<|im_start|>assistant\n", opens))
    prepared = prepare([Example.messages([QUESTION, ANSWER] * 2)], tokenizer, template, 99)
    assert prepared.altered == {LOST_ANSWERS: Named(1, ["example 1"])}
    assert [tokenizer.decode(one.labels[one.labels >= 0].tolist()) for one in prepared.encoded] == ["b<|im_end|>"]


def test_a_document_that_is_too_long_leaves_the_others(tokenizer: Tokenizer):
    """The first answer's takes fewer tokens than the conversation."""
    drops = Example.messages([QUESTION, {**ANSWER, "reasoning_content": "hm"}] * 2)
    lengths = [len(one.tokens) for one in prepare([drops], tokenizer, ChatTemplate(CHATML), 99).encoded]
    prepared = prepare([drops], tokenizer, ChatTemplate(CHATML), lengths[1] - 1)
    assert [len(one.tokens) for one in prepared.encoded] == lengths[:1]
    assert prepared.altered == {OWN_DOCUMENTS: Named(1, ["example 1"]), LONG_DOCUMENTS: Named(1, ["example 1"])}
    assert filter_by_length([drops], tokenizer, ChatTemplate(CHATML), lengths[1] - 1) == []
    assert filter_by_length([drops], tokenizer, ChatTemplate(CHATML), lengths[1]) == [drops]
    prepared = prepare([drops, THREE], tokenizer, ChatTemplate(CHATML), lengths[0] - 1)
    assert prepared.skipped == {"longer than max_length": Named(1, ["example 1"])}


OPENS = CHATML.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}{% else %}<think>{% endif %}",
)


def test_answers_that_think_nothing_are_counted_with_what_avoids_it(tokenizer: Tokenizer):
    """The prompt opens <think>, as DeepSeek R1's does; with reasoning there is nothing to say."""
    plain = Example.messages([QUESTION, ANSWER])
    thinking = Example.messages([QUESTION, {**ANSWER, "reasoning_content": "hm"}])
    template = ChatTemplate(OPENS)
    prepared = prepare([plain, thinking], tokenizer, template, 99)
    assert prepared.altered == {NO_REASONING + WITHOUT_PLACE: Named(1, ["example 1"])}
    trained = [tokenizer.decode(one.labels[one.labels >= 0].tolist()) for one in prepared.encoded]
    assert trained == ["</think>b<|im_end|>", "hm</think>b<|im_end|>"]
    off = replace(template, switches={"enable_thinking": False})
    assert prepare([plain], tokenizer, off, 99).altered == {}
    always = ChatTemplate(CHATML.replace("assistant\n", "assistant\n<think>"))
    assert prepare([plain], tokenizer, always, 99).altered == {NO_REASONING: Named(1, ["example 1"])}


@pytest.mark.parametrize(
    ("overlong", "what", "pieces", "endless"),
    [
        ("truncate-left", "longer than max_length: the beginning was cut off", 1, 0),
        ("truncate-right", "longer than max_length: the end was cut off", 1, 1),
        ("split", "longer than max_length: split into windows", 3, 2),
    ],
)
def test_a_longer_example_is_cut_or_split_and_counted(
    overlong: Overlong, what: str, pieces: int, endless: int, tokenizer: Tokenizer, template: ChatTemplate
):
    """9 tokens in windows of 4, each beginning with the last of the one before: 4, 3 and 2 of their own."""
    nine = Example.completion("a", " b" * 7)
    prepared = prepare([THREE, nine], tokenizer, template, 4, overlong=overlong)
    assert (prepared.altered, prepared.skipped) == ({what: Named(1, ["example 2"])}, {})
    assert len(prepared.encoded) == 1 + pieces
    assert prepared.endless.count == len(prepared.endless.first) == endless


def test_windows_have_as_much_context_as_asked_for(tokenizer: Tokenizer, template: ChatTemplate):
    """9 tokens in windows of 4 that begin with 2 of the one before: 4, then 2 of their own each, the last 1."""
    nine = Example.completion("a", " b" * 7)
    prepared = prepare([nine], tokenizer, template, 4, overlong="split", overlap=2)
    assert [int((one.labels >= 0).sum()) for one in prepared.encoded] == [3, 2, 2, 1]


def test_of_many_sources_the_first_are_named_and_all_are_counted(
    tokenizer: Tokenizer, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
):
    """Skipped, cut and endless ones alike: nothing grows with the data but numbers."""
    monkeypatch.setattr("gguflora.data.named.MOST_NAMED", 2)
    long, empty = Example.completion("a", " b" * 7), Example.completion("a", "")
    prepared = prepare([THREE, *[long, empty] * 50], tokenizer, template, 4, overlong="truncate-right")
    assert prepared.skipped == {"empty answer": Named(50, ["example 3", "example 5"])}
    assert list(prepared.altered.values()) == [Named(50, ["example 2", "example 4"])]
    assert prepared.endless == Named(50, ["example 2", "example 4"])


def test_what_a_cut_leaves_nothing_trained_of_is_skipped(tokenizer: Tokenizer, template: ChatTemplate):
    example = Example.completion("a " * 9, "b")
    assert prepare([THREE, example], tokenizer, template, 4, overlong="truncate-right").skipped == {
        "longer than max_length, and nothing trained is left of it": Named(1, ["example 2"])
    }


@pytest.mark.parametrize(("train_on", "trained"), [("all", [4]), ("last", [2]), ("everything", [46, 26])])
def test_what_is_trained_is_as_asked_for(
    train_on: TrainOn, trained: list[int], tokenizer: Tokenizer, template: ChatTemplate
):
    """An answer and its end are 2 tokens. A question alone can be trained where everything is.

    With what the template writes the question takes 6 tokens, the answer 7, the system message before them 21, of
    which the first has nothing before it.
    """
    examples = [Example.messages([QUESTION, ANSWER] * 2), Example.messages([QUESTION])]
    prepared = prepare(examples, tokenizer, template, 99, train_on=train_on)
    assert [int((one.labels >= 0).sum()) for one in prepared.encoded] == trained
    assert ("no message of the assistant" in prepared.skipped) == (train_on != "everything")


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
