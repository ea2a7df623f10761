"""What a message says is text, also where it spells a control token such as `<|im_end|>`.

llama-server parses control tokens in the rendered text wherever they stand, so a user who writes one ends his own
turn. In training that would teach the model a conversation that never was. Here such spellings are encoded as the
characters that they are:

1. In the messages each spelling is replaced by a stand-in, a private character that no message has.
2. The template renders those messages. With the spellings put back, the text must equal the rendering of the
   messages as they were; if not, the template looks into what is said, and the example is refused.
3. Control tokens found in the text now are the template's own. What stands between two of them is one piece for the
   tokenizer anyway; a piece with a stand-in gets its spelling back and is encoded with control tokens switched off.

Messages without a spelling, nearly all, are rendered and encoded in one go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

_FIRST_STAND_IN = 0xF0000  # the supplementary private use area: 65,534 characters that no script uses


@dataclass(frozen=True)
class Hidden:
    """A conversation in which stand-ins take the place of what spells a control token.

    Attributes:
        rows: the messages as templates read them.
        switches: what else the template is given: the tools.
        spellings: what each stand-in stands for; empty where nothing spells a control token.
    """

    rows: list[dict[str, Any]]
    switches: dict[str, Any]
    spellings: Mapping[str, str]

    def restore(self, text: str) -> str:
        """`text` with every spelling back in its place."""
        for stand_in, spelling in self.spellings.items():
            text = text.replace(stand_in, spelling)
        return text


def hide_control_tokens(
    rows: list[dict[str, Any]], switches: dict[str, Any], controls_in: Callable[[str], Sequence[str]]
) -> Hidden:
    """A conversation with stand-ins for the control tokens that it spells, wherever text stands in it.

    Args:
        rows: the messages as the user gave them.
        switches: the tools, if any.
        controls_in: the control tokens that a text spells.
    """
    said = "\n".join(_texts([rows, switches]))
    spelled = controls_in(said)
    if not spelled:
        return Hidden(rows, switches, {})
    characters = set(said)
    free = (chr(code) for code in count(_FIRST_STAND_IN) if chr(code) not in characters)
    stand_ins = dict(zip(spelled, free, strict=False))
    pattern = _any_of(spelled)

    def hide(text: str) -> str:
        return pattern.sub(lambda match: stand_ins[match[0]], text)

    spellings = {stand_in: spelling for spelling, stand_in in stand_ins.items()}
    return Hidden(_mapped(rows, hide), _mapped(switches, hide), spellings)


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain values; the keys of mappings are not what anyone says."""
    match value:
        case str():
            yield value
        case dict():
            yield from (text for item in value.values() for text in _texts(item))
        case list():
            yield from (text for item in value for text in _texts(item))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Plain values with every text changed."""
    match value:
        case str():
            return change(value)
        case dict():
            return {key: _mapped(item, change) for key, item in value.items()}
        case list():
            return [_mapped(item, change) for item in value]
        case _:
            return value


def split_pieces(text: str, hidden: Hidden, controls: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """`text` cut into pieces to be encoded one by one: (piece, whether control tokens are parsed in it).

    Args:
        text: rendered from `hidden.rows`, or a part of that.
        hidden: says what its stand-ins stand for.
        controls: texts of the vocabulary's control tokens.
    """
    parsed = ""
    own = _present(controls, [text]) if hidden.spellings else []
    for part in re.split(f"({_any_of(own).pattern})", text) if own else [text]:
        if hidden.spellings.keys().isdisjoint(part):
            parsed += part
            continue
        if parsed:
            yield parsed, True
        yield hidden.restore(part), False
        parsed = ""
    if parsed:
        yield parsed, True


def _present(controls: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [control for control in controls if any(control in text for text in texts)]


def _any_of(controls: Sequence[str]) -> re.Pattern[str]:
    """Matches any of them, the longest where two begin alike, as llama.cpp does (cache_special_tokens)."""
    return re.compile("|".join(re.escape(control) for control in sorted(controls, key=len, reverse=True)))
