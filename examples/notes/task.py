"""The task of the demo: a one-line expense note becomes a record with fixed keys, as compact JSON.

    Noor paid 12.45 for noodles at Blue Anchor on 14 May
    {"item":"noodles","price":12.45,"shop":"Blue Anchor","who":"Noor","date":"14 May"}

What is asked before and after training stands here, and how an answer is judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

Record: TypeAlias = dict[str, str | int | float | None]
Message: TypeAlias = dict[str, str]

KEYS = ("item", "price", "shop", "who", "date")

SYSTEM = "JSON"
"""The system message of every example. It is short because it replaces the template's own, which is longer, and
the trained model needs no explanation."""

SCHEMA = (
    "Turn the expense note into one line of JSON with exactly these keys: item (string), price (number), "
    'shop (string), who (string, who bought it), date (string such as "14 May", or null if the note has no date). '
    "Answer with the JSON alone."
)

SHOWN = (
    (
        "Union Place charged Grace 16.66 for oranges on May 23",
        '{"item":"oranges","price":16.66,"shop":"Union Place","who":"Grace","date":"23 May"}',
    ),
    (
        "Zoe picked up peaches from Little Owl, only 77",
        '{"item":"peaches","price":77,"shop":"Little Owl","who":"Zoe","date":null}',
    ),
)
"""Two notes of train.jsonl with their records, one with a date and one without."""


@dataclass(frozen=True)
class Outcome:
    """How one answer did."""

    valid: bool
    """The answer is one JSON object and nothing else."""

    exact: bool
    """It has the expected keys and values; spaces and the order of the keys don't matter."""


def record_text(record: Record) -> str:
    """Write a record as the model is trained to: one line, no spaces, keys in the order of KEYS."""
    return json.dumps({key: record[key] for key in KEYS}, separators=(",", ":"), ensure_ascii=False)


def prompt(note: str) -> list[Message]:
    """Ask the trained model: the messages of a training example, up to the answer."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": note}]


def few_shot_prompt(note: str) -> list[Message]:
    """Ask the untrained model as well as one can in a prompt: the schema, and two notes with their records."""
    messages = [{"role": "system", "content": SCHEMA}]
    for shown_note, shown_record in SHOWN:
        messages.append({"role": "user", "content": shown_note})
        messages.append({"role": "assistant", "content": shown_record})
    return [*messages, {"role": "user", "content": note}]


def score(answer: str, expected: str) -> Outcome:
    """Judge the text that a model answered against the expected record, a line of JSON."""
    found = _json_object(answer)
    return Outcome(valid=found is not None, exact=found is not None and found == json.loads(expected))


def _json_object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    # Python reads NaN and Infinity; JSON has neither.
    raise ValueError(f"{constant} is not JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Python keeps the last of two equal keys, which would hide a wrong first value.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
