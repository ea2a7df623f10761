"""Text from a file does nothing on a terminal, and stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.report.text import harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 日本 é", "plain 日本 é"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\u202e reversed", "\\u202e reversed"),
        ("\ud800", "\\ud800"),  # half a surrogate pair, which no terminal takes
        ("\x9b2J", "\\x9b2J"),  # the one-character form of escape and bracket
    ],
)
def test_what_acts_is_spelled_and_what_shows_is_kept(text: str, shown: str):
    assert harmless(text) == shown


def test_what_is_asked_to_be_kept_is_kept():
    assert harmless("a\nb\t", keep="\n") == "a\nb\\t"


@given(st.text(st.characters(), max_size=50))
def test_nothing_unprintable_is_left_and_printable_text_is_untouched(text: str):
    assert harmless(text).isprintable()
    assert harmless(harmless(text)) == harmless(text)
