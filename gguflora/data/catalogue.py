"""What a pass over examples leaves: a few bytes each, by which they are split, counted and known again.

An example's content is known by 16 bytes of BLAKE2b over Python's spelling of it, which differs for what is not equal:
contents are records of texts alone. Among a million examples two different ones have the same 16 bytes with a
probability of 1e-27.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from gguflora.data.example import Conversation, Example

Ids = npt.NDArray[np.uint64]
"""(n, 2): 16 bytes for each of n examples."""

_SIZE = 16


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Of n examples in order.

    Attributes:
        contents: (n, 2) what each says; equal for equal contents alone.
        examples: (n, 2) content, weight and source.
        conversations: (n,) whether it is a conversation.
        characters: of all contents together, as Python spells them.
    """

    contents: Ids
    examples: Ids
    conversations: npt.NDArray[np.bool_]
    characters: int


def catalogue_of(examples: Iterable[Example]) -> Catalogue:
    """Go through `examples` once."""
    contents, whole, conversations, characters = bytearray(), bytearray(), bytearray(), 0
    for example in examples:
        spelling = repr(example.content)
        content = _hash(spelling)
        contents += content
        whole += _of_example(content, example)
        conversations.append(isinstance(example.content, Conversation))
        characters += len(spelling)
    return Catalogue(_ids(contents), _ids(whole), np.frombuffer(conversations, np.bool_), characters)


def contents_of(examples: Iterable[Example]) -> Ids:
    """(n, 2) what each example says; equal for equal contents alone."""
    return _ids(b"".join(_hash(repr(example.content)) for example in examples))


def id_of(example: Example) -> bytes:
    """The 16 bytes that `Catalogue.examples` has for an example."""
    return _of_example(_hash(repr(example.content)), example)


def _of_example(content: bytes, example: Example) -> bytes:
    return _hash(f"{content.hex()} {float(example.weight)!r} {example.source!r}")


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=_SIZE).digest()


def _ids(data: bytes | bytearray) -> Ids:
    return np.frombuffer(data, np.uint64).reshape(-1, 2)
