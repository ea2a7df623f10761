"""The short form of `make mutants`: every fault can still be planted, and two of them are."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, replaced, turns_red


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_has_its_place_in_the_code(mutant: Mutant) -> None:
    text = (ROOT / "gguflora" / mutant.file).read_text()
    assert replaced(text, mutant) != text
    assert all((ROOT / name).exists() for name in mutant.tests.split())


@pytest.mark.parametrize("name", ["clipping below the norm", "lora_a begins too large"])
def test_a_planted_fault_turns_its_test_red(name: str) -> None:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    assert turns_red(mutant)
