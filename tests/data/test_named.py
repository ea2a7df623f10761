"""All are counted and the first are kept, also of several lists together."""

from __future__ import annotations

import pytest

from gguflora.data.named import Named, joined


@pytest.fixture(autouse=True)
def three_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.data.named.MOST_NAMED", 3)


def named(*texts: str) -> Named:
    made = Named()
    for text in texts:
        made.append(text)
    return made


def test_the_first_are_kept_and_all_are_counted():
    assert named() == Named(0, [])
    assert named("a", "b", "c") == Named(3, ["a", "b", "c"])
    assert named("a", "b", "c", "d", "d") == Named(5, ["a", "b", "c"])


def test_several_together_are_as_one_after_the_other():
    parts = [named("a", "b"), named(), named("c", "d", "e", "f")]
    assert joined(parts) == named("a", "b", "c", "d", "e", "f") == Named(6, ["a", "b", "c"])
    assert parts[0] == Named(2, ["a", "b"])  # and none of them is changed
