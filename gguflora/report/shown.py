"""Examples for a person to look at, as `data show` prints them: what is trained stands out."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from gguflora.report.text import harmless

_STYLE = "black on green"


@dataclass(frozen=True)
class ShownPiece:
    """Tokens of an example that are all trained, or none: each with its text; half a character is U+FFFD.

    Attributes:
        text: of all of them together.
    """

    text: str
    tokens: tuple[tuple[int, str], ...]
    trained: bool


@dataclass(frozen=True)
class ShownExample:
    """An example as the model sees it; notes: what is not trained of it, or not as one might expect."""

    source: str
    pieces: tuple[ShownPiece, ...]
    notes: tuple[str, ...] = ()


def shown(example: ShownExample, *, ids: bool, colour: bool) -> Text:
    """An example's source, how much of it is trained, and its text with the trained part marked.

    Args:
        example: what to show.
        ids: one token a line, with its id.
        colour: mark by colour; else by [ and ], or in a list of tokens by a *.
    """
    count = sum(len(piece.tokens) for piece in example.pieces)
    trained = sum(len(piece.tokens) for piece in example.pieces if piece.trained)
    text = Text(f"{harmless(example.source)}: {count} tokens, {trained} trained\n")
    for note in example.notes:
        text.append(f"note: {harmless(note)}\n")
    for piece in example.pieces:
        style = _STYLE if piece.trained and colour else ""
        if ids:
            for id, spelled in piece.tokens:
                text.append("* " if piece.trained else "  ")
                text.append(f"{id:7d}  ").append(harmless(repr(spelled)), style).append("\n")
            continue
        body = harmless(piece.text, keep="\n")
        text.append(body if colour or not piece.trained else f"[{body}]", style)
    return text
