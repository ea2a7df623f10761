"""What `inspect` found in a file: records, which are its JSON, and the lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gguflora.gguf import ChatSetting, Identity
from gguflora.report.text import harmless

_INDENT = 12  # characters before a line's text
_SHOWN_VALUES = 8  # of a number that each layer has its own of
_SHORT_HASH = 12  # characters of a hash that a person compares


@dataclass(frozen=True)
class TypeUse:
    """How much of a file has one tensor type."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class FileFacts:
    """What every GGUF has.

    Attributes:
        kind: model, adapter or vocabulary.
        bytes: on the disk, all parts together.
        parts: bytes of each of the files, by path.
        types: by name, the one with the most bytes first.
    """

    kind: str
    path: str
    name: str
    architecture: str
    parameters: int
    bytes: int
    parts: Mapping[str, int]
    types: Mapping[str, TypeUse]


@dataclass(frozen=True)
class TokenFacts:
    """A special token; its text is None where the vocabulary could not be read."""

    id: int
    text: str | None


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer: as llama.cpp would use it, or, where it is not supported, as the file states it."""

    model: str
    pre: str
    tokens: int
    bos: TokenFacts | None
    eos: TokenFacts | None
    eot: TokenFacts | None
    add_bos: bool | None
    add_eos: bool | None


@dataclass(frozen=True)
class TemplateFacts:
    """A chat template.

    Attributes:
        sha256: of all templates in the file, as in Identity.
        characters: length of the default one.
        first_lines: its beginning.
        others: names of further templates in the file, such as tool_use.
    """

    sha256: str
    characters: int
    first_lines: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class TargetFacts:
    """Tensors of one stem and shape (out, in) that can have a pair; `default`: all-linear has them."""

    stem: str
    tensors: int
    shape: tuple[int, int]
    default: bool


@dataclass(frozen=True)
class ModelFacts:
    """A model, or a vocabulary without weights.

    Attributes:
        hyperparameters: by name; those that the file states, where the model is not supported.
        tokenizer: None where the file has none.
        chat_template: None where the file has none.
        identity: None where there are no weights.
        targets: none where the model is not supported.
        obstacles: why it can't be trained, a sentence each; none if it can.
    """

    file: FileFacts
    hyperparameters: Mapping[str, Any]
    tokenizer: TokenizerFacts | None
    chat_template: TemplateFacts | None
    identity: Identity | None
    targets: tuple[TargetFacts, ...]
    obstacles: tuple[str, ...]


@dataclass(frozen=True)
class PairFacts:
    """One pair and its Frobenius norms; `change` is that of alpha / rank x lora_b @ lora_a.

    Attributes:
        layer: None outside the blocks.
        shape: (out, in) of the tensor that it is for.
    """

    tensor: str
    stem: str
    layer: int | None
    rank: int
    shape: tuple[int, int]
    lora_a: float
    lora_b: float
    change: float


@dataclass(frozen=True)
class StemFacts:
    """All pairs of one stem: means of their norms, the largest change, and how many change nothing at all."""

    stem: str
    pairs: int
    ranks: tuple[int, ...]
    lora_a: float
    lora_b: float
    change: float
    largest_change: float
    without_effect: int


@dataclass(frozen=True)
class AdapterFacts:
    """A LoRA adapter.

    Attributes:
        base: the base's identity; None in adapters of other programs.
        base_files: files on this machine that are known to be that base.
        chat: how conversations were rendered in training.
    """

    file: FileFacts
    alpha: float
    ranks: tuple[int, ...]
    base: Identity | None
    base_files: tuple[str, ...]
    chat: ChatSetting
    stems: tuple[StemFacts, ...]
    pairs: tuple[PairFacts, ...]


def as_json(facts: ModelFacts | AdapterFacts) -> dict[str, Any]:
    """The facts as JSON values; those of the file stand beside the others."""
    values = asdict(facts)
    file: dict[str, Any] = values.pop("file")
    trainable = {"trainable": not facts.obstacles} if isinstance(facts, ModelFacts) else {}
    return file | values | trainable


def lines_of(facts: ModelFacts | AdapterFacts, *, pairs: bool = False) -> Iterator[str]:
    """The facts for people, without control characters.

    Args:
        facts: what was found.
        pairs: each pair of an adapter too, not its stems alone.
    """
    blocks = _adapter(facts, pairs) if isinstance(facts, AdapterFacts) else _model(facts)
    for title, lines in blocks:
        for number, line in enumerate(lines):
            yield f"{title if number == 0 else '':{_INDENT}}{harmless(line)}".rstrip()


def _model(facts: ModelFacts) -> Iterator[tuple[str, list[str]]]:
    yield from _file(facts.file)
    if facts.hyperparameters:
        numbers = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in facts.hyperparameters.items()]
        yield "Numbers", [", ".join(numbers[start : start + 5]) for start in range(0, len(numbers), 5)]
    yield "Tokenizer", _tokenizer(facts.tokenizer)
    yield "Template", _template(facts.chat_template)
    if facts.identity:
        yield "Identity", _identity(facts.identity, facts.chat_template is not None)
    if facts.targets:
        yield "Targets", [_target(target) for target in facts.targets]
    yield "Training", [*(f"not possible: {why}" for why in facts.obstacles)] or ["this version can train it"]


def _adapter(facts: AdapterFacts, pairs: bool) -> Iterator[tuple[str, list[str]]]:
    yield from _file(facts.file)
    ranks = ", ".join(map(str, facts.ranks))
    yield "Adapter", [f"{len(facts.pairs)} pairs, rank {ranks}, alpha {facts.alpha:g}"]
    yield "Base", _base(facts)
    if facts.chat.options or facts.chat.template:
        other = f", another template: {facts.chat.template[:_SHORT_HASH]}" if facts.chat.template else ""
        yield "Chat", [f"trained with template options {facts.chat.options or 'none'}{other}; serve it with the same"]
    yield "Norms", _table(facts.stems)
    if pairs:
        yield "Pairs", _pair_table(facts.pairs)


def _file(facts: FileFacts) -> Iterator[tuple[str, list[str]]]:
    kind = facts.kind.capitalize()
    architecture = facts.architecture or "no architecture named"
    yield kind, [f"{facts.name} ({architecture}, {_parameters(facts.parameters)} parameters)"]
    yield "File", [f"{facts.path}, {_bytes(facts.bytes)}"]
    if len(facts.parts) > 1:
        yield "Parts", [f"{path}, {_bytes(size)}" for path, size in facts.parts.items()]
    if facts.types:
        rows = [
            (name, str(use.tensors), _parameters(use.parameters), _bytes(use.bytes))
            for name, use in facts.types.items()
        ]
        yield "Types", _aligned([("", "tensors", "parameters", "size"), *rows])


def _tokenizer(facts: TokenizerFacts | None) -> list[str]:
    if facts is None:
        return ["none"]
    tokens = {"BOS": facts.bos, "EOS": facts.eos, "end of turn": facts.eot}
    added = {None: "not stated", True: "yes", False: "no"}
    return [
        f"{facts.model}, pre {facts.pre or 'not stated'}, {facts.tokens} tokens",
        ", ".join(f"{role} {_token(token)}" for role, token in tokens.items()),
        f"adds BOS: {added[facts.add_bos]}, adds EOS: {added[facts.add_eos]}",
    ]


def _token(token: TokenFacts | None) -> str:
    if token is None:
        return "none"
    return str(token.id) if token.text is None else f"{token.id} {token.text!r}"


def _template(facts: TemplateFacts | None) -> list[str]:
    if facts is None:
        return ["absent: llama.cpp takes ChatML"]
    others = f", and {', '.join(facts.others)}" if facts.others else ""
    head = f"{facts.sha256[:_SHORT_HASH]}, {facts.characters} characters{others}; it begins:"
    return [head, *(f"| {line}" for line in facts.first_lines)]


def _identity(identity: Identity, has_template: bool) -> list[str]:
    return [
        f"weights   {identity.base}",
        f"tokenizer {identity.tokenizer}",
        f"template  {identity.template if has_template else 'absent'}",
    ]


def _target(target: TargetFacts) -> str:
    more = "" if target.default else "  (only when named)"
    return f"{target.stem:12}  {target.tensors:4} x {target.shape[0]} x {target.shape[1]}{more}"


def _base(facts: AdapterFacts) -> list[str]:
    if facts.base is None:
        return ["not stated: another program wrote this adapter, so keep the base's name with it"]
    found = facts.base_files or ("no file with these weights is known on this machine",)
    return [*_identity(facts.base, has_template=True), *found]


def _table(stems: Iterable[StemFacts]) -> list[str]:
    head = ("", "pairs", "rank", "lora_a", "lora_b", "change", "largest change")
    rows = [
        (
            stem.stem,
            str(stem.pairs),
            ",".join(map(str, stem.ranks)),
            f"{stem.lora_a:.4g}",
            f"{stem.lora_b:.4g}",
            f"{stem.change:.4g}",
            f"{stem.largest_change:.4g}",
        )
        for stem in stems
    ]
    idle = sum(stem.without_effect for stem in stems)
    notes = [f"{idle} pairs change nothing: their lora_b or lora_a is zero"] if idle else []
    about = "means of the pairs' Frobenius norms; change is alpha / rank x lora_b @ lora_a"
    return [*_aligned([head, *rows]), about, *notes]


def _pair_table(pairs: Iterable[PairFacts]) -> list[str]:
    head = ("", "rank", "out x in", "lora_a", "lora_b", "change")
    rows = [
        (
            pair.tensor,
            str(pair.rank),
            f"{pair.shape[0]} x {pair.shape[1]}",
            f"{pair.lora_a:.4g}",
            f"{pair.lora_b:.4g}",
            f"{pair.change:.4g}",
        )
        for pair in pairs
    ]
    return _aligned([head, *rows])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    safe = [[harmless(cell) for cell in row] for row in rows]  # before it is measured
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in safe
    ]


def _number(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.0f}" if value.is_integer() else f"{value:g}"
        case list():
            more = " ..." if len(value) > _SHOWN_VALUES else ""
            return " ".join(map(_number, value[:_SHOWN_VALUES])) + more
        case _:
            return str(value)


def _parameters(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _bytes(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
