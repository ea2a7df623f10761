"""Two examples have one id exactly when they are equal; of contents, and of all that an example is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gguflora.data.catalogue import catalogue_of, contents_of, id_of
from gguflora.data.example import Example, Message
from gguflora.data.tools import ToolCall

TEXTS = st.sampled_from(["", "a", "b", "a'", 'a"', "a\n", "\\n", "', '", "é", "e\u0301"])
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["f", "g"]), TEXTS, TEXTS), max_size=2).map(tuple)
MESSAGES = st.one_of(
    st.builds(Message, st.just("user"), TEXTS), st.builds(Message, st.just("assistant"), TEXTS, TEXTS, CALLS)
)
EXAMPLES = st.one_of(
    st.builds(Example.completion, TEXTS, TEXTS),
    st.builds(Example.messages, st.lists(MESSAGES, min_size=1, max_size=3)),
)


@given(st.lists(EXAMPLES, min_size=2, max_size=8))
def test_contents_have_one_id_exactly_when_they_are_equal(examples: list[Example]):
    ids = [tuple(row) for row in contents_of(examples).tolist()]
    for one, one_id in zip(examples, ids, strict=True):
        for other, other_id in zip(examples, ids, strict=True):
            assert (one.content == other.content) == (one_id == other_id)
    assert (catalogue_of(examples).contents == contents_of(examples)).all()


def test_weight_and_source_are_in_the_id_of_the_example_and_not_of_its_content():
    one = Example.completion("a", "b")
    examples = [one, replace(one, weight=1), replace(one, weight=0.5), replace(one, source="d.jsonl:1")]
    known = catalogue_of(examples)
    assert len({tuple(row) for row in known.contents.tolist()}) == 1
    assert [row.tobytes() for row in known.examples] == [id_of(example) for example in examples]
    assert len(set(map(id_of, examples))) == 3  # 1 is 1.0


def test_what_else_is_known():
    known = catalogue_of([Example.completion("abc", "d"), Example.chat(None, "a", "b")])
    assert known.conversations.tolist() == [False, True]
    assert known.characters == len("Completion(prompt='abc', completion='d')") + len(
        "Conversation(messages=(Message(role='user', content='a', reasoning='', tool_calls=(), name='', "
        "tool_call_id=''), Message(role='assistant', content='b', reasoning='', tool_calls=(), name='', "
        "tool_call_id='')), tools=())"
    )
    empty = catalogue_of([])
    assert (empty.contents.shape, empty.conversations.shape) == ((0, 2), (0,))
