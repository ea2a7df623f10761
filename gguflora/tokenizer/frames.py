"""Messages between two processes over a pipe: the length in four bytes, then JSON in UTF-8.

No pickle: what the other side writes is data, whatever became of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

HEADER = struct.Struct(">I")


def to_frame(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message; text may hold halves of surrogate pairs.

    Raises:
        ValueError: a number has more digits than Python writes out, or the message is longer than 4 GiB.
    """
    body = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(body) >= 2**32:
        raise ValueError("a message of more than 4 GiB")
    return HEADER.pack(len(body)) + body


def from_body(body: bytes) -> dict[str, Any]:
    """The message whose bytes, without their length, are `body`.

    Raises:
        ValueError: they are none.
    """
    message = json.loads(body.decode("utf-8", "surrogatepass"))
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message
