"""Blocks of reasoning are found where they stand, and closed in the way they were opened."""

from __future__ import annotations

import pytest

from gguflora.data.reasoning import closed_block, empty_block, open_block, with_reasoning_apart

OPEN = [
    ("<|im_start|>assistant\n<think>\n", "<think>", "</think>", "\n", "hm\n</think>\n\n"),  # Qwen3, DeepSeek R1
    ("<assistant><think>", "<think>", "</think>", "", "hm</think>"),  # DeepSeek V3.1, Laguna
    ("x<seed:think>", "<seed:think>", "</seed:think>", "", "hm</seed:think>"),
    ("x<think:opensource>", "<think:opensource>", "</think:opensource>", "", "hm</think:opensource>"),
    ("[/INST][THINK]", "[THINK]", "[/THINK]", "", "hm[/THINK]"),
    ("<|CHATBOT_TOKEN|><|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>", "", "hm<|END_THINKING|>"),
    ("<|open|>think<|sep|>", "<|open|>think<|sep|>", "<|close|>think<|sep|>", "", "hm<|close|>think<|sep|>"),
    ("<|channel>thought\n", "<|channel>thought\n", "<channel|>", "", "hm<channel|>"),
]


@pytest.mark.parametrize(("text", "opening", "closing", "gap", "ended"), OPEN)
@pytest.mark.parametrize("before", ["", "<think>", "y" * 1000])
def test_an_open_block_is_found_at_the_end_and_ends_as_it_began(
    before: str, text: str, opening: str, closing: str, gap: str, ended: str
):
    block = open_block(before + text)
    assert block is not None
    assert (block.opening, block.closing, block.gap) == (opening, closing, gap)
    assert (before + text)[block.start :] == opening + gap
    assert block.ended("hm") == ended
    assert block.ended("") == ended.removeprefix("hm")


@pytest.mark.parametrize(("opening", "closing"), sorted({(row[1], row[2]) for row in OPEN}))
@pytest.mark.parametrize(("gap", "behind"), [("", ""), ("\n", ""), ("\n\n", "\n\n")])
def test_an_empty_block_is_found_at_the_end_and_at_the_beginning(opening: str, closing: str, gap: str, behind: str):
    written = f"{opening}{gap}{closing}{behind}"
    for before in ("", "z" * 1000):
        block = closed_block(before + written)
        assert block is not None
        assert (block.start, block.opening, block.gap, block.behind) == (len(before), opening, gap, behind)
        assert open_block(before + written) is None
    first = empty_block(f"\n{written}words")
    assert first is not None
    assert (first.start, first.closing) == (1, closing)
    assert empty_block(f"words{written}") is None


@pytest.mark.parametrize(
    "text", ["", "<assistant>", "<think>words", "<think></think>", "<plan>", "thinking>", "</think>", "[/INST]", "<s>"]
)
def test_what_leaves_no_block_open(text: str):
    assert open_block(text) is None


@pytest.mark.parametrize("text", ["", "<think>words</think>", "<think>", "<think></seed:think>", "[INST][/INST]", "x"])
def test_what_is_no_empty_block(text: str):
    assert closed_block(text) is None
    assert empty_block(text) is None


THINK = open_block("<think>\n")


@pytest.mark.parametrize(
    ("content", "apart"),
    [
        ("<think>\nhm\nso\n</think>\n\nYes\n", {"content": "Yes\n", "reasoning_content": "hm\nso"}),
        ("<think>hm</think>Yes", {"content": "Yes", "reasoning_content": "hm"}),
        ("<think>\n\n</think>\n\nYes", {"content": "Yes"}),
        ("<think>hm", {"content": "<think>hm"}),
        ("Say <think>hm</think>", {"content": "Say <think>hm</think>"}),
        ("<plan>hm</plan>Yes", {"content": "<plan>hm</plan>Yes"}),
    ],
)
def test_reasoning_at_the_beginning_of_an_answer_is_put_apart(content: str, apart: dict[str, str]):
    assert THINK is not None
    assert with_reasoning_apart({"role": "assistant", "content": content}, THINK) == {"role": "assistant", **apart}


def test_an_answer_that_has_its_reasoning_apart_stays_as_it_is():
    assert THINK is not None
    row = {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}
    assert with_reasoning_apart(row, THINK) == row
