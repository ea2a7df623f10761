"""What is trained with each published template stands where llama-server asks for it, token by token.

docs/templates.md says what comes of each; here it is held to that. A dozen templates lie beside the checkout on some
machines and are always tried; `make templates` fetches the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguflora.data.labels import encode_example
from gguflora.errors import DataError, UsageError
from gguflora.gguf import open_gguf
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer
from tests.data.published import ARCHIVE, BESIDE, end_of, published, write_model
from tests.data.template_report import CONVERSATIONS, PAGE, example_of, line_of, opened, parsed, row_of, trained

Rows = list[dict[str, Any]]

PAGE_LINES = PAGE.read_text(encoding="utf-8").splitlines()


def templates() -> list[Any]:
    """Those that the page has a line for."""
    beside = published(BESIDE)
    others = {name: source for name, source in published(ARCHIVE).items() if name not in beside}
    return [
        pytest.param(name, source, id=name, marks=[pytest.mark.slow] if name in others else [])
        for name, source in (beside | others).items()
        if any(line.startswith(f"| {name} |") for line in PAGE_LINES)
    ]


@pytest.mark.parametrize(("name", "source"), templates())
def test_what_comes_of_a_template_is_what_the_page_says(name: str, source: str, tmp_path: Path):
    """Every answer that is trained stands behind llama-server's own tokens and holds what was said, or this fails."""
    model = opened(tmp_path, name, source)
    with model.server:
        line = line_of(name, row_of(model))
    assert line in PAGE_LINES


def thinking() -> list[Any]:
    """Those whose reasoning is trained as such, by the page's column."""
    column = 1 + list(CONVERSATIONS).index("reasoning")
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[column] for line in PAGE_LINES if line[:2] == "| "}
    return [case for case in templates() if cells[case.id] == "yes"]


@pytest.mark.parametrize(("name", "source"), thinking())
def test_llama_server_takes_reasoning_and_words_out_of_what_is_trained(name: str, source: str, tmp_path: Path):
    """A model that has learned it is understood: the server's own parser is given the text that is trained."""
    model = opened(tmp_path, name, source)
    with model.server:
        found = {shape: parsed(model, CONVERSATIONS[shape]) for shape in ("plain", "reasoning")}
    opened_with = (
        "Here are my reasoning steps:\n" if name.startswith("Apriel-1.6") else ""
    )  # it takes the prompt's end too
    for shape, (reasoning, words) in found.items():
        answer = CONVERSATIONS[shape][-1]
        assert reasoning.strip() == (opened_with + answer.get("reasoning_content", "")).strip()
        assert words.removesuffix(end_of(name)).strip() == answer["content"]  # some show their end


@pytest.mark.parametrize(("name", "source"), templates())
def test_whatever_is_said_the_template_writes_the_same_around_it(name: str, source: str, tmp_path: Path):
    """So nothing but the words, the reasoning and what the template always writes is trained."""
    gguf = open_gguf(write_model(tmp_path / "model.gguf", name, source))
    tokenizer, template = load_tokenizer(gguf), load_template(gguf)
    for rows in CONVERSATIONS.values():
        known, *others = (
            frames(changed(rows, said), tokenizer, template) for said in ("Words", "<i>", "\u00e9\U0001f642 {{ x }}")
        )
        assert all(other == known for other in others)


def changed(rows: Rows, said: str) -> Rows:
    """The conversation with other words in the answers."""
    keys = ("content", "reasoning_content")
    return [
        row | {key: f"{said} {row[key]} {said}." for key in keys if row.get(key)} if row["role"] == "assistant" else row
        for row in rows
    ]


def frames(rows: Rows, tokenizer: Tokenizer, template: ChatTemplate) -> list[str]:
    """What is trained for each answer with the words taken out; or that the conversation is refused."""
    answers = [row for row in rows if row["role"] == "assistant"]
    try:
        documents = list(encode_example(example_of(rows), tokenizer, template))
    except (DataError, UsageError) as error:
        return [type(error).__name__]
    found = []
    for one in trained(documents, len(answers)):
        text = tokenizer.decode(one.tokens)
        for key in ("content", "reasoning_content"):
            text = text.replace(answers[one.number - 1].get(key) or key, f"({key})")
        found.append(text)
    return found
