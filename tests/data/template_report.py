"""Try each published template, and write what came of it to docs/templates.md.

    make templates, or: python -m tests.data.template_report

A conversation of each shape is encoded, and every answer in it is compared with llama-server: it must stand behind the
very tokens that the server makes of the messages before it, hold its words, reasoning and calls, and end with the end.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguflora.data.encoded import Encoded
from gguflora.data.example import Conversation, Example
from gguflora.data.labels import encode_example
from gguflora.data.rows import rows_of, switches_of
from gguflora.errors import DataError, UsageError
from gguflora.gguf import open_gguf
from gguflora.llamacpp.server import LlamaServer
from gguflora.llamacpp.stand_in import write_stand_in
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_template, load_tokenizer
from tests.data.published import ROOT, end_of, published, write_model

PAGE = ROOT / "docs" / "templates.md"

SYSTEM = {"role": "system", "content": "Be brief, \u00e9ven so."}
QUESTION = {"role": "user", "content": "One?\nTwo \U0001f642"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says 'the' weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "a city"}}},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyiv"}'}}
RESULT = {"role": "tool", "content": '{"degrees": 7}', "name": "weather", "tool_call_id": "call00001"}


def answer(number: int, *, thinks: bool = False) -> dict[str, Any]:
    said = {"role": "assistant", "content": f"<b>Words</b> {number}.\n\n  So!"}
    return {**said, "reasoning_content": f"Because {number}:\n* yes"} if thinks else said


CALLING: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [QUESTION, answer(1)],
    "system": [SYSTEM, QUESTION, answer(1)],
    "turns": [SYSTEM, QUESTION, answer(1), QUESTION, answer(2), QUESTION, answer(3)],
    "reasoning": [QUESTION, answer(1, thinks=True)],
    "reasoning in turns": [QUESTION, answer(1, thinks=True), QUESTION, answer(2, thinks=True)],
    "tools": [QUESTION, CALLING, RESULT, answer(2)],
    "tools and reasoning": [QUESTION, {**CALLING, "reasoning_content": "I ask."}, RESULT, answer(2, thinks=True)],
}


@dataclass(frozen=True)
class Model:
    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    server: LlamaServer


def opened(folder: Path, name: str, source: str) -> Model:
    """A template with a vocabulary of its own, here and behind llama-server."""
    gguf = open_gguf(write_model(folder / "model.gguf", name, source))
    write_stand_in(folder / "served.gguf", gguf, source)
    server = LlamaServer(folder / "served.gguf", context_length=2048, threads=1)
    return Model(name, load_tokenizer(gguf), load_template(gguf), server)


@dataclass(frozen=True)
class Trained:
    """An answer as it is trained: its number, the tokens before it, its own."""

    number: int
    before: list[int]
    tokens: list[int]


def example_of(rows: list[dict[str, Any]]) -> Example:
    tools = [WEATHER] if RESULT in rows else []
    return replace(Example.messages(rows, tools=tools), source="d")


def trained(documents: list[Encoded], answers: int) -> list[Trained]:
    """The answers of a conversation, by number; the last document has those that have none of their own."""
    own = {int(document.source.rpartition(" ")[2]): document for document in documents[:-1]}
    rest = [number for number in range(1, answers + 1) if number not in own]
    found = []
    for numbers, document in [*(([number], one) for number, one in own.items()), (rest, documents[-1])]:
        labels = document.labels.tolist()
        starts = [index for index in range(1, len(labels)) if labels[index] >= 0 > labels[index - 1]]
        assert len(starts) == len(numbers) - document.lost_answers
        for number, start in zip(numbers[-len(starts) :], starts, strict=True):
            end = next((index for index in range(start, len(labels)) if labels[index] < 0), len(labels))
            found.append(Trained(number, document.tokens[:start].tolist(), labels[start:end]))
    return sorted(found, key=lambda one: one.number)


def parsed(model: Model, rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Reasoning and words that llama-server takes out of what is trained for the last answer, if the model writes it.

    A grammar that allows nothing else makes the model without weights write it.
    """
    documents = list(encode_example(example_of(list(rows)), model.tokenizer, model.template))
    *_, last = trained(documents, sum(row["role"] == "assistant" for row in rows))
    text = model.tokenizer.decode(last.tokens[:-1])
    options = {"grammar": f"root ::= {json.dumps(text)}", "max_tokens": len(text.encode()) + 8, "temperature": 0}
    answer = model.server._ask("POST", "/v1/chat/completions", {"messages": list(rows[:-1]), **options})["choices"][0][
        "message"
    ]
    return str(answer.get("reasoning_content") or ""), str(answer["content"])


class Differs(Exception):
    """llama-server renders the messages before an answer otherwise."""


def check(model: Model, rows: Sequence[dict[str, Any]]) -> list[str]:
    """How a conversation is trained, where that is not simply so; every answer is compared with llama-server.

    Raises:
        DataError, UsageError: it is refused.
        Differs: llama-server renders it otherwise.
        AssertionError: something else is trained than the answers.
    """
    example = example_of(rows)
    assert isinstance(example.content, Conversation)
    documents = list(encode_example(example, model.tokenizer, model.template))
    places = [index for index, row in enumerate(rows) if row["role"] == "assistant"]
    unwritten = sum(document.lost_reasoning for document in documents)
    for one in trained(documents, len(places)):
        row, before = rows[places[one.number - 1]], rows_of(example.content.messages[: places[one.number - 1]])
        prompt = model.server.apply_template(before, **switches_of(example.content))
        if one.before != model.server.tokenize(prompt):
            raise Differs
        assert one.tokens[-1] in model.tokenizer.vocabulary.eog
        assert not set(one.tokens[:-1]) & model.tokenizer.vocabulary.eog
        _assert_said(model.tokenizer.decode(one.tokens), row, end_of(model.name), reasoned=not unwritten)
    remarks = {
        f"{len(documents)} documents": len(documents) > 1,
        "without reasoning": unwritten,
        "thinks nothing": sum(document.no_reasoning for document in documents),
    }
    return [remark for remark, so in remarks.items() if so]


def _assert_said(text: str, row: dict[str, Any], end: str, *, reasoned: bool) -> None:
    assert text.endswith(end) or row.get("tool_calls")  # a call may have an end of its own
    assert text.count(row["content"]) == 1 or not row["content"]
    assert not reasoned or text.count(row.get("reasoning_content", "")) == 1 or "reasoning_content" not in row
    for call in row.get("tool_calls", []):
        assert call["function"]["name"] in text


_REASONS = (
    ("does not use tools", "it reads no tools"),
    ("writes no end-of-generation token", "nothing ends an answer"),
    ("does not write the tool call", "it writes no calls"),
    ("as it is generated", "how an answer is generated can't be found out"),
)


def cell(model: Model, rows: Sequence[dict[str, Any]]) -> str:
    """What came of a conversation, in a few words."""
    try:
        remarks = check(model, rows)
    except Differs:
        return "no: llama-server renders it otherwise"
    except (DataError, UsageError) as error:
        known = [short for mark, short in _REASONS if mark in str(error)]
        said = re.search(r"refuses the messages: (.*)\.", str(error), re.DOTALL)
        return "no: " + (
            known[0] if known else f"it says \u201c{' '.join(said[1].split())}\u201d" if said else str(error)
        )
    return ", ".join(["yes", *remarks])


def row_of(model: Model) -> dict[str, str]:
    """What came of each shape."""
    return {shape: cell(model, rows) for shape, rows in CONVERSATIONS.items()}


def line_of(name: str, cells: Mapping[str, str]) -> str:
    """A row of the page's table."""
    return f"| {name} | {' | '.join(cells.values())} |"


HEAD = """\
# Chat templates

What comes of the chat templates that llama.cpp publishes (models/templates in its source archive). `make templates`
fetches them, tries each and writes this page; `make slow` holds the page to it. Each column is a conversation. *yes*
means that every answer in it is trained behind the very tokens that llama-server makes of the messages before it, and
that what is trained are its words, its reasoning, its calls, what the template always writes around them, and the token
that ends it; where reasoning is trained, llama-server's own parser takes reasoning and words out of it again. *no* says
why not: such an example is refused, but where llama-server renders it otherwise, which `gguflora data check` shows.
Further:

- *documents*: the template writes earlier answers differently once later messages follow, so answers are trained in
  documents of their own ([data.md](data.md));
- *thinks nothing*: the template has a place for reasoning, which stays empty where an answer has none;
- *without reasoning*: the template writes no reasoning, so the answer is trained without it.
"""


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The page about the templates, by name."""
    lines = [f"| template | {' | '.join(CONVERSATIONS)} |", "|---" * (1 + len(CONVERSATIONS)) + "|"]
    return "\n".join([HEAD, *lines, *(line_of(name, cells) for name, cells in rows.items()), ""])


def rows() -> Iterator[tuple[str, dict[str, str]]]:
    """Try every template of the source archive."""
    for name, source in published().items():
        with tempfile.TemporaryDirectory() as folder:
            model = opened(Path(folder), name, source)
            with model.server:
                yield name, row_of(model)


def main() -> int:
    """Write the page."""
    if not published():
        print("The templates are not in build/templates: run make templates.", file=sys.stderr)
        return 1
    found = {}
    for name, cells in rows():
        print(line_of(name, cells), flush=True)
        found[name] = cells
    PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
