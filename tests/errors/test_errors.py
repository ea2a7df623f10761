"""The tree of errors is the one drawn in its docstring, and its exit codes are those of the design."""

from __future__ import annotations

import re

import pytest

from gguflora import errors

EXIT_CODES = {  # docs: 0 done, 1 a bug, 2 what you gave, 4 resources, 5 numeric stop, 6 the folder is in use
    "GgufloraError": 1,
    "GivenError": 2,
    "UsageError": 2,
    "FileError": 2,
    "ModelError": 2,
    "DataError": 2,
    "FolderInUse": 6,
    "MachineError": 4,
    "NumericError": 5,
}


def classes() -> dict[str, type[errors.GgufloraError]]:
    return {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


def test_every_error_has_the_exit_code_of_the_design():
    assert {name: kind.exit_code for name, kind in classes().items()} == EXIT_CODES


def test_the_drawing_shows_every_error_under_its_parent():
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # (column, name) from the root down to the line above
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"[ │├└─]*\b(\w+(?:Error|InUse))\b", line):
            path = [(column, name) for column, name in path if column < match.start(1)]
            drawn[match[1]] = path[-1][1] if path else "Exception"
            path.append((match.start(1), match[1]))
    assert drawn == {name: kind.__base__.__name__ for name, kind in classes().items()}


def test_the_drawing_shows_the_exit_codes():
    drawn = dict(re.findall(r"(\w+) +exit (\d)", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {
        name: kind.exit_code
        for name, kind in classes().items()
        if "exit_code" in vars(kind) and name != "GgufloraError"
    }


@pytest.mark.parametrize("name", EXIT_CODES)
def test_one_except_catches_every_error_and_the_message_is_kept(name):
    with pytest.raises(errors.GgufloraError, match=r"^what, where, what to do$"):
        raise classes()[name]("what, where, what to do")
