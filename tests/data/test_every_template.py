"""What is trained with each published template stands where llama-server asks for it, token by token.

docs/templates.md says what comes of each; here it is held to that. A dozen templates lie beside the checkout on some
machines and are always tried; `make templates` fetches the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.published import ARCHIVE, BESIDE, end_of, published
from tests.data.template_report import CONVERSATIONS, PAGE, line_of, opened, parsed, row_of

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
    rows = CONVERSATIONS["reasoning"]
    model = opened(tmp_path, name, source)
    with model.server:
        reasoning, words = parsed(model, rows)
    assert reasoning.strip() == rows[-1]["reasoning_content"]
    assert words.removesuffix(end_of(name)).strip() == rows[-1]["content"]  # some show their end
