"""A model in several files, as llama.cpp writes and loads it: NAME-00001-of-00003.gguf and so on.

Each part is a GGUF file that describes and holds its own tensors and has three keys: its number from 0 (`split.no`,
UINT16), the number of parts (`split.count`, UINT16) and the number of tensors in all of them
(`split.tensors.count`, INT32). All other metadata stand in the first part.
Sources: llama.cpp src/llama-model-loader.cpp:595-672, src/llama.cpp:545 (llama_split_path), tools/gguf-split.

Nothing in a part says which model it belongs to. What can be seen is refused: another number, another count, another
architecture, a tensor that stands in two parts, too few or too many tensors. What can't be (the same layers of a
model that has the same shapes and types) has another identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gguflora.errors import FileError
from gguflora.gguf.cursor import invalid, shown
from gguflora.gguf.file import GgufFile, TensorInfo
from gguflora.gguf.format import ValueType

NUMBER = "split.no"
COUNT = "split.count"
TENSORS = "split.tensors.count"
_TYPES = {NUMBER: ValueType.UINT16, COUNT: ValueType.UINT16, TENSORS: ValueType.INT32}
_SAME_IN_ALL = (COUNT, TENSORS, "general.architecture")


def other_parts(first: GgufFile) -> list[Path]:
    """Where the second and all further parts of the model lie; nowhere, if it is one file.

    Raises:
        FileError: the file is not the first part or not named as one, or a further part is missing.
    """
    if COUNT not in first.metadata:
        return []
    count = _integer(first, COUNT)
    if count < 2:
        return []  # llama.cpp then looks at no other key
    number = _integer(first, NUMBER)
    if number >= count:
        raise invalid(first.path, f"it is part {number + 1} of {count}")
    name = first.path.name.removesuffix(_ending(number, count))
    named = name not in ("", first.path.name)
    if number:
        wanted = f"{name if named else 'NAME'}{_ending(0, count)}"
        raise FileError(f"{first.path} is part {number + 1} of {count}: give the first, {wanted}.")
    if not named:
        raise FileError(
            f"{first.path} is the first of {count} parts, which are found by their names alone: call it "
            f"NAME{_ending(0, count)}, with the NAME of the others."
        )
    return [_existing(first.path, name + _ending(number, count), count) for number in range(1, count)]


def joined(first: GgufFile, others: Sequence[GgufFile]) -> GgufFile:
    """One model of all its parts; `first` itself, if there are no others.

    Args:
        first: the part whose metadata the model has.
        others: the files at `other_parts(first)`, in that order.

    Raises:
        FileError: a part is another part than its name says, or belongs to another model.
    """
    if not others:
        return first
    total = _integer(first, TENSORS)
    tensors: dict[str, TensorInfo] = dict(first.tensors)
    for number, part in enumerate(others, 1):
        _check_part(first, part, number)
        for name, info in part.tensors.items():
            if name in tensors:
                raise _foreign(first, part, f"tensor {name} stands in an earlier part too")
            tensors[name] = replace(info, part=number)
    if len(tensors) != total:
        raise FileError(
            f"{first.path} and its other parts hold {len(tensors)} tensors, but {TENSORS} is {total}: download or "
            f"copy all of them again."
        )
    parts = first.parts + tuple(file for part in others for file in part.parts)
    return replace(first, tensors=MappingProxyType(tensors), parts=parts)


def _ending(number: int, count: int) -> str:
    """Of the name of part `number`, counted from 0 as in the file; names count from 1."""
    return f"-{number + 1:05d}-of-{count:05d}.gguf"


def _existing(first: Path, name: str, count: int) -> Path:
    # By the name that was given, never by what it links to: downloaded models are often links to files named by hash.
    path = first.with_name(name)
    if not path.exists():
        raise FileError(f"{path} is missing: {first.name} is the first of {count} parts, so put all into one folder.")
    return path


def _check_part(first: GgufFile, part: GgufFile, number: int) -> None:
    if NUMBER not in part.metadata:
        raise _foreign(first, part, f"it has no {NUMBER}")
    found = _integer(part, NUMBER)
    if found != number:
        raise _foreign(first, part, f"it is part {found + 1}, not {number + 1}")
    for key in _SAME_IN_ALL:
        if key in part.metadata and part.metadata[key] != first.metadata.get(key):
            theirs, ours = (shown(str(file.metadata.get(key))) for file in (part, first))
            raise _foreign(first, part, f"its {key} is {theirs}, not {ours}")


def _foreign(first: GgufFile, part: GgufFile, problem: str) -> FileError:
    return FileError(
        f"{part.path} does not belong to {first.path.name}: {problem}; get all parts of one model into one folder."
    )


def _integer(file: GgufFile, key: str) -> int:
    value = file.metadata.integer(key, _TYPES[key])
    if value is None:
        raise invalid(file.path, f"{key} is missing or not of type {_TYPES[key].name}")
    return value
