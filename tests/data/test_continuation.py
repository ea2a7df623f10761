"""What a model is made to write, template by template: what is expected is written by hand, from what the family does.

The templates here are as short as a family's peculiarity allows; the published ones are in test_published_templates.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from gguflora.data.continuation import Continuation, continuation_of, split_reasoning
from gguflora.data.endings import text_behind
from gguflora.tokenizer import ChatTemplate

OPENED = "{% if add_generation_prompt %}A:<think>\n{% endif %}"
KEPT = (
    "{% for m in messages %}{{ m.role[0] | upper }}:"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}{{ m.content }}$"
    "{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}$ {% endfor %}"
DROPPED = "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content.split('</think>')[-1] | trim }}$ {% endfor %}"

# name: (template, prompt, what follows without reasoning, what follows with "hm")
FAMILIES = {
    "writes reasoning, and nothing in place of none (Bielik)": (
        KEPT + OPENED,
        "U:q$A:<think>\n",
        "\n</think>\na$",
        "hm\n</think>\na$",
    ),
    "writes no reasoning (DeepSeek R1)": (
        PLAIN + OPENED,
        "U:q$ A:<think>\n",
        "\n</think>\n\na$ ",
        "hm\n</think>\n\na$ ",
    ),
    "closes a block that it does not write (DeepSeek V3.1)": (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}A:<think>{% else %}</think>{{ m.content }}$"
        "{% endif %}{% endfor %}",
        "U:qA:<think>",
        "</think>a$",
        "hm</think>a$",
    ),
    "writes an answer into the open block (Nemotron Nano v2)": (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}A:<think>\n{% else %}{{ m.content }}$"
        "{% endif %}{% endfor %}",
        "U:qA:<think>\n",
        "\n</think>\n\na$",
        "hm\n</think>\n\na$",
    ),
    "opens a block in words (Apriel)": (
        "{% for m in messages %}{{ m.role[0] | upper }}:"
        "{% if m.reasoning_content %}{{ m.reasoning_content }}\n[FINAL]\n{% endif %}{{ m.content }}$"
        "{% endfor %}{% if add_generation_prompt %}A:My steps:\n{% endif %}",
        "U:q$A:My steps:\n",
        "\n[FINAL]\na$",
        "hm\n[FINAL]\na$",
    ),
    "has the model write the whole block (Qwen3)": (
        KEPT.replace("{% endif %}{{ m", "{% elif m.role != 'user' %}<think>\n\n</think>\n{% endif %}{{ m")
        + OPENED.replace("<think>\n", ""),
        "U:q$A:",
        "<think>\n\n</think>\na$",
        "<think>\nhm\n</think>\na$",
    ),
    "has the model write a block that stays empty in history (Kimi K2 Thinking)": (
        PLAIN.replace("{{ m.content", "{{ '<think></think>' if m.role != 'user' }}{{ m.content")
        + "{% if add_generation_prompt %}A:{% endif %}",
        "U:q$ A:",
        "<think></think>a$ ",
        "<think>hm</think>a$ ",
    ),
    "knows no reasoning (Llama 3)": (PLAIN + "{% if add_generation_prompt %}A:{% endif %}", "U:q$ A:", "a$ ", "a$ "),
    "closes the block itself and keeps reasoning (Qwen3, thinking off)": (
        KEPT + OPENED.replace("<think>\n", "<think>\n\n</think>\n\n"),
        "U:q$A:<think>\n\n</think>\n\n",
        "a$",
        "a$",
    ),
    "closes the block itself and writes none (QwQ, thinking off)": (
        PLAIN + OPENED.replace("<think>\n", "<think>\n</think>"),
        "U:q$ A:<think>\n</think>",
        "\n\na$ ",
        "\n\na$ ",
    ),
    "closes the block itself and once more (DeepSeek V3.2, thinking off)": (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}A:<think></think>{% else %}</think>"
        "{{ m.content }}$ {% endif %}{% endfor %}",
        "U:qA:<think></think>",
        "a$ ",
        "a$ ",
    ),
    "asks behind what a finished conversation lacks (Command R+)": (
        PLAIN + "{% if add_generation_prompt %}S:call tools$ A:{% endif %}",
        "U:q$ S:call tools$ A:",
        "a$ ",
        "a$ ",
    ),
}


def found(template: str, *messages: dict[str, Any]) -> Continuation:
    result = continuation_of(messages[:-1], messages[-1], {}, ChatTemplate(template))
    assert isinstance(result, Continuation)
    return result


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_continuation(family: str):
    template, prompt, plain, reasoned = FAMILIES[family]
    without = found(template, QUESTION, ANSWER)
    assert (without.prompt, without.text) == (prompt, plain)
    given = found(template, QUESTION, {**ANSWER, "reasoning_content": "hm"})
    assert (given.prompt, given.text, given.no_reasoning) == (prompt, reasoned, False)
    assert without.no_reasoning == ("hm" in reasoned)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("words", ["a", "A:", "<b>a</b>", "think", "\u2028</b>", "My steps:", "$ S:call tools$ A"])
def test_the_words_of_an_answer_do_not_change_what_stands_around_them(family: str, words: str):
    template, prompt, plain, reasoned = FAMILIES[family]
    spoken = {"role": "assistant", "content": words}
    assert found(template, QUESTION, spoken).text == plain.replace("a$", f"{words}$")
    thinking = {**spoken, "reasoning_content": "so: My steps:\nA:"}
    expected = reasoned.replace("a$", f"{words}$").replace("hm", "so: My steps:\nA:")
    result = found(template, QUESTION, thinking)
    assert (result.prompt, result.text) == (prompt, expected)


def test_a_system_message_that_stands_in_the_last_question_alone_stands_where_the_model_is_asked():
    """Mistral Nemo's way: finished conversations never show it."""
    template = (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}[INST]{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "s"}
    result = found(template, system, QUESTION, ANSWER)
    assert (result.prompt, result.text) == ("[INST]s\n\nq[/INST]", "a</s>")
    result = found(template, system, QUESTION, ANSWER, {"role": "user", "content": "[/INST]"}, ANSWER)
    assert (result.prompt, result.text) == ("[INST]q[/INST]a</s>[INST]s\n\n[/INST][/INST]", "a</s>")


def test_what_an_answer_is_opened_with_is_found_where_the_history_before_it_reads_otherwise():
    """gpt-oss drops the thoughts of an earlier call once there is an answer, and opens one with less than it writes."""
    template = (
        "{% for m in messages %}{{ m.role[0] | upper }}:"
        "{% if m.reasoning_content and (loop.last or messages[-1].role != 'assistant') %}"
        "thought:{{ m.reasoning_content }}$A:{% endif %}"
        "{% if m.role == 'assistant' %}said:{% endif %}{{ m.content }}$ {% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    thinking = {**ANSWER, "reasoning_content": "hm"}
    result = found(template, QUESTION, thinking, QUESTION, thinking)
    assert result.prompt == "U:q$ A:thought:hm$A:said:a$ U:q$ A:"
    assert result.text == "thought:hm$A:said:a$ "
    result = found(template, QUESTION, thinking, QUESTION, ANSWER)
    assert (result.prompt, result.text) == ("U:q$ A:thought:hm$A:said:a$ U:q$ A:", "said:a$ ")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            PLAIN + OPENED.replace("<think>", "<plan>"),
            r"opens it with '<plan>\\n' but writes it, once finished, as 'a\$ '",
        ),
        (
            PLAIN + "{% if add_generation_prompt %}A:My steps:\n{% endif %}",
            r"opens it with 'My steps:\\n' but writes it",
        ),
        (PLAIN + "{% if add_generation_prompt %}B:{% endif %}", "opens it with 'B:' but writes it"),
    ],
)
def test_what_can_not_be_found_out_is_said(template: str, reason: str):
    result = continuation_of([QUESTION], ANSWER, {}, ChatTemplate(template))
    assert isinstance(result, str)
    assert re.match(reason, result)


def test_an_answer_that_only_calls_closes_the_block_too():
    calls = "{% for c in m.tool_calls %}<call>{{ c.function.name }}</call>{% endfor %}"
    template = PLAIN.replace("{{ m.content }}", "{{ m.content }}" + calls) + OPENED
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert found(template, QUESTION, row).text == "\n</think>\n\n<call>f</call>$ "
    row["reasoning_content"] = "hm"
    assert found(template, QUESTION, row).text == "hm\n</think>\n\n<call>f</call>$ "


def test_reasoning_in_the_content_is_put_apart_where_the_prompt_opens_such_a_block():
    """As in many datasets; DeepSeek R1's template takes it off. Where nothing opens a block it is what is said."""
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\na"}
    rows = [QUESTION, said, QUESTION, said]
    apart = {**ANSWER, "reasoning_content": "hm"}
    assert split_reasoning(rows, {}, ChatTemplate(DROPPED + OPENED)) == [QUESTION, apart, QUESTION, apart]
    assert split_reasoning(rows, {}, ChatTemplate(PLAIN)) == rows


def test_what_stands_behind_a_turn_is_what_comes_before_the_next():
    template = ChatTemplate(
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    )
    rows = [QUESTION, ANSWER, QUESTION]
    assert text_behind(rows, 1, {}, template) == "<u>q"
    assert text_behind(rows[:2], 1, {}, template) == "<u>x"
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert text_behind([QUESTION, {**ANSWER, "tool_calls": [call]}], 1, {}, template) == "<t>{}"
    assert text_behind(rows, 1, {}, ChatTemplate("{{ messages | length }}")) == ""
    drops = template.source.replace("{{ m.reasoning_content }}", "{{ m.reasoning_content if loop.last }}")
    assert text_behind([QUESTION, {**ANSWER, "reasoning_content": "hm"}], 1, {}, ChatTemplate(drops)) == "<u>x"
