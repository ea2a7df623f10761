"""What is trained is each answer and the token that ends it, nothing else. Expected texts are written by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.data.encoded import Encoded
from gguflora.data.example import Example, Message
from gguflora.data.labels import encode_example
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer
from gguflora.tokenizer.special_tokens import TokenType

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
IM_START, IM_END, ENDOFTEXT = 1, 2, 0  # ids in SmolLM2's vocabulary


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def spans(encoded: Encoded, tokenizer: Tokenizer) -> list[tuple[bool, str]]:
    """The example as (trained, text) runs, decoded from its tokens; a trained label must be its token."""
    trained = encoded.labels != -100
    assert (encoded.labels[trained] == encoded.tokens[trained]).all()
    runs = groupby(zip(trained.tolist(), encoded.tokens.tolist(), strict=True), key=lambda pair: pair[0])
    return [(kind, tokenizer.decode([token for _, token in run])) for kind, run in runs]


CASES = {
    "one turn": (
        [user("Hi"), assistant("Hello!")],
        [
            (False, SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
            (True, "Hello!<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "system and two turns": (
        [{"role": "system", "content": "Be brief"}, user("1+1?"), assistant("2"), user("2+2?"), assistant("4")],
        [
            (
                False,
                "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
            ),
            (True, "2<|im_end|>"),
            (False, "\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"),
            (True, "4<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "crlf": (
        [user("a\r\nb"), assistant("c\r\nd\r\n")],
        [
            (False, SYSTEM + "<|im_start|>user\na\r\nb<|im_end|>\n<|im_start|>assistant\n"),
            (True, "c\r\nd\r\n<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "leading newline, which must not merge with the template's": (
        [user("\nx\n"), assistant("\n\ny")],
        [
            (False, SYSTEM + "<|im_start|>user\n\nx\n<|im_end|>\n<|im_start|>assistant\n"),
            (True, "\n\ny<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "emoji": (
        [user("👩‍👩‍👧?"), assistant("👍🏽 café e\u0301")],
        [
            (False, SYSTEM + "<|im_start|>user\n👩‍👩‍👧?<|im_end|>\n<|im_start|>assistant\n"),
            (True, "👍🏽 café e\u0301<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "a user turn after the last answer": (
        [user("Hi"), assistant("Hello!"), user("Bye")],
        [
            (False, SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
            (True, "Hello!<|im_end|>"),
            (False, "\n<|im_start|>user\nBye<|im_end|>\n"),
        ],
    ),
    "the same answer twice, and in the question": (
        [user("yes"), assistant("yes"), user("yes"), assistant("yes")],
        [
            (False, SYSTEM + "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"),
            (True, "yes<|im_end|>"),
            (False, "\n<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n"),
            (True, "yes<|im_end|>"),
            (False, "\n"),
        ],
    ),
    "control tokens spelled by everyone": (
        [user("What is <|im_end|>\n<|im_start|>?"), assistant("<|im_end|> ends <|endoftext|> a turn")],
        [
            (False, SYSTEM + "<|im_start|>user\nWhat is <|im_end|>\n<|im_start|>?<|im_end|>\n<|im_start|>assistant\n"),
            (True, "<|im_end|> ends <|endoftext|> a turn<|im_end|>"),
            (False, "\n"),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_trained_text_of_a_conversation(case: str, tokenizer: Tokenizer, template: ChatTemplate):
    messages, expected = CASES[case]
    [encoded] = encode_example(Example.messages(messages), tokenizer, template)
    assert spans(encoded, tokenizer) == expected


def test_the_trained_text_of_an_instruction(tokenizer: Tokenizer, template: ChatTemplate):
    [encoded] = encode_example(Example.instruction("Translate", "Hello", "Hola", weight=0.5), tokenizer, template)
    assert spans(encoded, tokenizer) == [
        (False, SYSTEM + "<|im_start|>user\nTranslate\n\nHello<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hola<|im_end|>"),
        (False, "\n"),
    ]
    assert encoded.weight == 0.5


def test_the_trained_text_of_a_completion(tokenizer: Tokenizer, template: ChatTemplate):
    """No template; SmolLM2 wants no BOS, and its end of text (eos) is <|im_end|>."""
    [encoded] = encode_example(Example.completion("def f(n):", "\n    return n"), tokenizer, template)
    assert spans(encoded, tokenizer) == [(False, "def f(n):"), (True, "\n    return n<|im_end|>")]


def test_a_completion_begins_with_bos_where_the_file_says_so_and_never_with_eos(
    tokenizer: Tokenizer, template: ChatTemplate
):
    both = replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, add_bos=True, add_eos=True))
    [encoded] = encode_example(Example.completion("a", "b"), both, template)
    assert spans(encoded, tokenizer) == [(False, "<|im_start|>a"), (True, "b<|im_end|>")]


def test_control_tokens_in_a_completion_are_text(tokenizer: Tokenizer, template: ChatTemplate):
    [encoded] = encode_example(Example.completion("<|im_start|>", "<|im_end|>!"), tokenizer, template)
    assert spans(encoded, tokenizer) == [(False, "<|im_start|>"), (True, "<|im_end|>!<|im_end|>")]
    assert np.isin(encoded.tokens, [IM_START, IM_END]).sum() == 1


def test_the_first_token_is_never_trained(tokenizer: Tokenizer, template: ChatTemplate):
    [encoded] = encode_example(Example.completion("", "Once upon a time"), tokenizer, template)
    assert spans(encoded, tokenizer) == [(False, "Once"), (True, " upon a time<|im_end|>")]


def test_only_the_template_writes_control_tokens(tokenizer: Tokenizer, template: ChatTemplate):
    """Three turns: three starts and three ends, whatever the messages spell."""
    messages, _ = CASES["control tokens spelled by everyone"]
    [encoded] = encode_example(Example.messages(messages), tokenizer, template)
    tokens = encoded.tokens.tolist()
    assert (tokens.count(IM_START), tokens.count(IM_END), tokens.count(ENDOFTEXT)) == (3, 3, 0)


contents = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<", "|>", "\n", " ", "im_end", "user\n", "é", "😀"]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_messages_say_the_answers_and_their_ends_are_trained(
    tokenizer: Tokenizer, template: ChatTemplate, turns: list[tuple[str, str]]
):
    messages = [message for question, answer in turns for message in (user(question), assistant(answer))]
    [encoded] = encode_example(Example.messages(messages), tokenizer, template)
    trained = [text for kind, text in spans(encoded, tokenizer) if kind]
    assert trained == [answer + "<|im_end|>" for _, answer in turns]
    rendered = SYSTEM + "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert tokenizer.decode(encoded.tokens.tolist()) == rendered
    assert encoded.tokens.tolist().count(IM_END) == 1 + len(messages)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_trims_messages_is_followed(tokenizer: Tokenizer):
    trimming = ChatTemplate(CHATML.replace("m.content", "m.content | trim"))
    [encoded] = encode_example(Example.chat(None, " Hi \n", "\n <|im_end|> Hello "), tokenizer, trimming)
    assert spans(encoded, tokenizer) == [
        (False, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<|im_end|> Hello<|im_end|>"),
        (False, "\n"),
    ]


def test_what_a_template_puts_before_an_answer_is_trained_because_the_model_must_write_it(tokenizer: Tokenizer):
    thinking = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    template = ChatTemplate(CHATML.replace("{{ m.content }}", thinking))
    [encoded] = encode_example(Example.chat(None, "Hi", "Hello"), tokenizer, template)
    assert spans(encoded, tokenizer)[1] == (True, "<think>\n\n</think>\n\nHello<|im_end|>")


def test_the_end_that_the_tokenizer_adds_is_trained_where_the_template_leaves_it_to_it(tokenizer: Tokenizer):
    """With add_eos llama-server takes a closing EOS off the text, and tokenizing puts it back."""
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
    template = ChatTemplate(
        plain + "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        eos_token="<|im_end|>",
        add_eos=True,
    )
    adding = replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, add_eos=True))
    messages = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    [encoded] = encode_example(Example.messages(messages), adding, template)
    assert spans(encoded, tokenizer) == [
        (False, "user: Hiassistant: <|im_end|>"),  # llama-server puts EOS after a prompt too
        (True, "Hello<|im_end|>"),
        (False, "user: Byeassistant: "),
        (True, "See you<|im_end|>"),
    ]


def test_what_a_template_adds_behind_the_last_message_is_not_trained_and_does_no_harm(tokenizer: Tokenizer):
    """Phi-3.5 ends each rendering without a generation prompt with the end of the text."""
    template = ChatTemplate(CHATML.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}"))
    messages = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    [encoded] = encode_example(Example.messages(messages), tokenizer, template)
    assert spans(encoded, tokenizer) == [
        (False, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hello<|im_end|>"),
        (False, "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        (True, "See you<|im_end|>"),
        (False, "\n<|endoftext|>"),
    ]


LAST = "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"

CHANGED_IN_HISTORY = {
    "drops the reasoning of earlier answers": (
        CHATML.replace(
            "{{ m.content }}", "{% if loop.last and loop.length % 2 == 0 %}<think></think>{% endif %}{{ m.content }}"
        ),
        "<|im_start|>assistant\n",
        "<think></think>{}<|im_end|>",
    ),
    "opens an answer with what an earlier one lacks": (
        CHATML.replace("assistant\n", "assistant\n<think>").replace(
            "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think>{% endif %}{{ m.content }}"
        ),
        "<|im_start|>assistant\n<think>",
        "</think>{}<|im_end|>",
    ),
    "ends the last answer with another token": (
        CHATML.replace("<|im_end|>", "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}"),
        "<|im_start|>assistant\n",
        "{}<|endoftext|>",
    ),
}
"""What it does: the template, what it opens an answer with, what is trained."""


@pytest.mark.parametrize("what", CHANGED_IN_HISTORY)
@pytest.mark.parametrize("more", [[], [user("q3")]], ids=["", "and a question without answer"])
def test_an_answer_that_the_template_changes_in_history_has_a_document_of_its_own(
    what: str, more: list[dict[str, str]], tokenizer: Tokenizer
):
    """As served: what stands there later was never generated. What follows the last answer is left out if need be."""
    text, opened, trained = CHANGED_IN_HISTORY[what]
    messages = [user("q1"), assistant("a1"), user("q2"), assistant("a2"), *more]
    example = replace(Example.messages(messages), source="a.jsonl:3")
    first, last = encode_example(example, tokenizer, ChatTemplate(text))
    assert spans(first, tokenizer) == [
        (False, f"<|im_start|>user\nq1<|im_end|>\n{opened}"),
        (True, trained.format("a1")),
    ]
    assert [text for kind, text in spans(last, tokenizer) if kind] == [trained.format("a2")]
    context = tokenizer.decode(last.tokens.tolist())
    assert context.startswith("<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n" + LAST)
    assert (first.source, last.source) == ("a.jsonl:3, answer 1", "a.jsonl:3")
    assert (first.lost_answers, last.lost_answers) == (0, 0)
    [alone] = encode_example(example, tokenizer, ChatTemplate(text), "last")
    assert spans(alone, tokenizer) == spans(last, tokenizer)


def test_an_answer_to_a_question_that_reads_otherwise_in_history_is_not_trained_there(tokenizer: Tokenizer):
    """The answer stands at its place with the same tokens, but not behind what the model is asked."""
    mark = "{% if m.role == 'user' %}{{ '!' if loop.revindex <= 2 else '?' }}{% endif %}{{ m.content }}"
    template = ChatTemplate(CHATML.replace("{{ m.content }}", mark))
    own, encoded = encode_example(Example.messages(TWO[:4]), tokenizer, template)
    assert spans(own, tokenizer) == [(False, ASKED.replace("q1", "!q1")), (True, "a1<|im_end|>")]
    assert [text for kind, text in spans(encoded, tokenizer) if kind] == ["a2<|im_end|>"]
    assert "?q1" in tokenizer.decode(encoded.tokens.tolist())


def test_context_that_is_not_trained_has_the_ids_of_one_text(tokenizer: Tokenizer):
    """llama-server tokenizes history in one go: no cut where a lost answer would have begun."""
    text, _, _ = CHANGED_IN_HISTORY["drops the reasoning of earlier answers"]
    text = text.replace("assistant\n", "assistant ").replace("m.role }}\n", "m.role }} ")
    messages = [user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    [encoded] = encode_example(Example.messages(messages), tokenizer, ChatTemplate(text), "last")
    prompt = ChatTemplate(text).render(messages[:-1], add_generation_prompt=True)
    start = encoded.labels.tolist().index(next(label for label in encoded.labels.tolist() if label >= 0))
    assert encoded.tokens[:start].tolist() == tokenizer.encode(prompt)


def test_an_answer_that_only_the_next_turn_ends_learns_that_end(tokenizer: Tokenizer):
    """GLM and others: the token that opens the user's turn ends generation, and stands behind no last answer."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'user' %}<|endoftext|>{{ m.content }}<file_sep>{% else %}"
        "{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    [encoded] = encode_example(Example.messages(messages), tokenizer, template)
    assert spans(encoded, tokenizer) == [
        (False, "<|endoftext|>q1<file_sep>"),
        (True, "a1<|endoftext|>"),
        (False, "q2<file_sep>"),
        (True, "a2<|endoftext|>"),
    ]


TWO = [user("q1"), assistant("a1"), user("q2"), assistant("a2"), user("q3")]
ASKED = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"


def test_the_last_answer_alone_can_be_trained(tokenizer: Tokenizer):
    [encoded] = encode_example(Example.messages(TWO), tokenizer, ChatTemplate(CHATML), "last")
    assert spans(encoded, tokenizer) == [
        (False, ASKED + "a1<|im_end|>\n" + LAST),
        (True, "a2<|im_end|>"),
        (False, "\n"),
    ]
    assert encoded.lost_answers == 0


@pytest.mark.parametrize("add_bos", [False, True])
def test_everything_but_bos_can_be_trained(tokenizer: Tokenizer, add_bos: bool):
    """The first token has nothing before it, BOS or not."""
    adding = replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, add_bos=add_bos, bos=ENDOFTEXT))
    for example in (
        Example.messages(TWO),
        Example.messages([user("q")]),
        Example.completion("def f(n):", " return n"),
    ):
        [encoded] = encode_example(example, adding, ChatTemplate(CHATML), "everything")
        assert encoded.labels.tolist() == [-100, *encoded.tokens[1:].tolist()]
        assert (encoded.tokens[0] == ENDOFTEXT) == add_bos
    [everything] = encode_example(Example.messages(TWO), adding, ChatTemplate(CHATML), "everything")
    [answers] = encode_example(Example.messages(TWO), adding, ChatTemplate(CHATML))
    assert everything.tokens.tolist() == answers.tokens.tolist()


def test_everything_of_a_template_whose_answers_can_not_be_trained_alone(tokenizer: Tokenizer):
    template = ChatTemplate(REFUSED["opens an answer with what a finished one lacks"][0])
    [encoded] = encode_example(Example.messages(TWO[:2]), tokenizer, template, "everything")
    assert tokenizer.decode(encoded.tokens.tolist()) == template.render(TWO[:2])


REFUSED = {
    "opens an answer with what a finished one lacks": (
        CHATML.replace("assistant\n", "assistant\n<plan>"),
        r"a.jsonl:3: answer 2 can't .* template opens it with '<plan>' but writes it, once finished, as 'a2<\|im_end",
    ),
    "opens an answer with what only a last one lacks": (
        CHATML.replace("assistant\n", "assistant\n<plan>").replace(
            "{{ m.content }}", "{% if m.role == 'assistant' and not loop.last %}<plan>{% endif %}{{ m.content }}"
        ),
        r"a.jsonl:3: answer 2 can't .* template opens it with '<plan>' but writes it, once finished, as 'a2<\|im_end",
    ),
    "leaves out what an answer says": (
        CHATML.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}"),
        r"a.jsonl:3: answer 2 can't be .* because the chat template leaves out what it says; give ",
    ),
    "never ends an answer": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "a.jsonl:3: the chat template writes no end-of-generation token after an answer",
    ),
    "ends the user's turn alone": (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}<|im_end|>{% endif %}{% endfor %}",
        "a.jsonl:3: the chat template writes no end-of-generation token after an answer",
    ),
    "refuses the messages": (
        "{{ raise_exception('only one turn please') }}",
        "a.jsonl:3: .*only one turn please",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_template_that_cannot_be_trained_turn_by_turn_is_refused_with_source_and_reason(
    what: str, tokenizer: Tokenizer
):
    text, reason = REFUSED[what]
    messages = tuple(Message(**m) for m in [user("q1"), assistant("a1"), user("q2"), assistant("a2")])
    example = replace(Example.messages(messages), source="a.jsonl:3")
    with pytest.raises(DataError, match=reason) as refused:
        list(encode_example(example, tokenizer, ChatTemplate(text)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        CHATML.replace("m.content", "m.content.split('<|im_end|>')[0]"),
        CHATML.replace("m.content", "m.content | replace('<', '&lt;')"),
        CHATML.replace("m.content", "m.content[:12]"),
    ],
)
def test_a_template_that_acts_on_a_spelled_control_token_is_refused(text: str, tokenizer: Tokenizer):
    with pytest.raises(DataError, match=r"a message spells '<\|im_end\|>', which the chat template acts on"):
        list(encode_example(Example.chat(None, "What is <|im_end|>?", "An end"), tokenizer, ChatTemplate(text)))
    list(encode_example(Example.chat(None, "What is it?", "An end"), tokenizer, ChatTemplate(text)))


@pytest.mark.parametrize(
    "example", [Example.chat(None, "Hi", "so <|im_end|>"), Example.completion("Hi", "so <|im_end|>")]
)
def test_an_ending_that_cannot_be_kept_as_text_is_refused_in_answers(
    example: Example, tokenizer: Tokenizer, template: ChatTemplate
):
    """A user-defined token is found in any text, so an answer that spells it would end there."""
    types = list(tokenizer.vocabulary.token_types)
    types[IM_END] = TokenType.USER_DEFINED
    specials = tuple(replace(special, always=special.always or special.id == IM_END) for special in tokenizer.specials)
    changed = replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, token_types=types), specials=specials)
    with pytest.raises(DataError, match=r"an answer holds '<\|im_end\|>', which ends every answer of this model"):
        list(encode_example(example, changed, template))


def test_nothing_to_train_is_refused(tokenizer: Tokenizer, template: ChatTemplate):
    with pytest.raises(DataError, match="no message is the assistant's"):
        list(encode_example(Example.messages([user("Hi")]), tokenizer, template))
    with pytest.raises(DataError, match="there is nothing to train"):
        list(encode_example(Example.completion("", ""), tokenizer, template))
    no_end = replace(tokenizer, vocabulary=replace(tokenizer.vocabulary, eos=None))
    with pytest.raises(DataError, match="no end-of-text token"):
        list(encode_example(Example.completion("a", "b"), no_end, template))
