"""What `gguflora inspect` does: say what a GGUF holds, and whether it can be trained. No torch here.

What this version does not support is shown all the same, as far as the file itself states it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gguflora.arch import ModelSpec, check_types, model_spec
from gguflora.errors import GivenError
from gguflora.gguf import (
    GgufFile,
    Identity,
    Metadata,
    TensorInfo,
    identity_of,
    open_gguf,
    read_adapter,
    remembered_paths,
)
from gguflora.report.inspected import (
    AdapterFacts,
    FileFacts,
    ModelFacts,
    TargetFacts,
    TemplateFacts,
    TokenFacts,
    TokenizerFacts,
    TypeUse,
)
from gguflora.run.adapter_norms import pair_facts, stem_facts
from gguflora.tokenizer import Vocabulary, load_template, load_tokenizer

_TOKENIZER = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_FIRST_LINES, _LINE = 4, 100  # of a template: lines, characters of each
_MOST_VALUES = 1024  # of a hyperparameter with one value a layer

# Name here: key in the metadata behind the architecture. For models that model_spec does not resolve.
_STATED = {
    "layers": "block_count",
    "width": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "ffn": "feed_forward_length",
    "experts": "expert_count",
    "experts_used": "expert_used_count",
    "context_length": "context_length",
    "rope_base": "rope.freq_base",
    "window": "attention.sliding_window",
}

T = TypeVar("T")


def inspect(path: Path) -> ModelFacts | AdapterFacts:
    """What the GGUF at `path` holds.

    Raises:
        FileError: it is no GGUF or damaged, or an adapter that is not valid.
        ModelError: a tensor has a type that this version does not know, so that nothing behind it can be found.
    """
    gguf = open_gguf(path)
    if gguf.metadata.get("general.type") == "adapter":
        return _adapter(gguf)
    return _model(gguf)


def _adapter(gguf: GgufFile) -> AdapterFacts:
    adapter = read_adapter(gguf.path)
    pairs = pair_facts(adapter)
    return AdapterFacts(
        file=_file(gguf, "adapter"),
        alpha=adapter.alpha,
        ranks=tuple(sorted({pair.rank for pair in pairs})),
        base=adapter.base,
        base_files=tuple(map(str, remembered_paths(adapter.base.base))) if adapter.base else (),
        chat=adapter.chat,
        stems=stem_facts(pairs),
        pairs=pairs,
    )


def _model(gguf: GgufFile) -> ModelFacts:
    obstacles: list[str] = []
    identity = identity_of(gguf)
    spec = None
    if not gguf.tensors:
        obstacles.append(f"{gguf.path} holds no weights: take a GGUF of the whole model.")
    else:
        spec = _unless_refused(lambda: model_spec(gguf), obstacles)
        _unless_refused(lambda: check_types(gguf), obstacles)
    vocabulary = _unless_refused(lambda: load_tokenizer(gguf).vocabulary, obstacles)
    if vocabulary:
        _unless_refused(lambda: load_template(gguf, vocabulary=vocabulary), obstacles)
    return ModelFacts(
        file=_file(gguf, "model" if gguf.tensors else "vocabulary"),
        hyperparameters=_resolved(spec) if spec else _stated(gguf),
        tokenizer=_tokenizer(vocabulary) if vocabulary else _stated_tokenizer(gguf.metadata),
        chat_template=_template(gguf, identity),
        identity=identity if gguf.tensors else None,
        targets=_targets(spec) if spec else (),
        obstacles=tuple(obstacles),
    )


def _unless_refused(look: Callable[[], T], obstacles: list[str]) -> T | None:
    """What `look` finds; if it is refused, nothing, and the reason goes to `obstacles`."""
    try:
        return look()
    except GivenError as error:
        obstacles.append(str(error))
        return None


def _file(gguf: GgufFile, kind: str) -> FileFacts:
    by_type: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in gguf.tensors.values():
        by_type[info.type.name].append(info)
    uses = {
        name: TypeUse(len(infos), sum(math.prod(info.shape) for info in infos), sum(info.nbytes for info in infos))
        for name, infos in by_type.items()
    }
    return FileFacts(
        kind=kind,
        path=str(gguf.path),
        name=str(gguf.metadata.get("general.name", gguf.path.stem)),
        architecture=gguf.architecture,
        parameters=sum(use.parameters for use in uses.values()),
        bytes=gguf.file_bytes,
        parts={str(part.path): len(part.buffer) for part in gguf.parts},
        types=dict(sorted(uses.items(), key=lambda item: -item[1].bytes)),
    )


def _resolved(spec: ModelSpec) -> dict[str, Any]:
    """The numbers that are computed with, llama.cpp's defaults included."""
    mixers = [layer.mixer for layer in spec.layers]
    windowed = [mixer for mixer in mixers if mixer.window]
    full = next((mixer for mixer in mixers if not mixer.window), mixers[0])
    numbers: dict[str, Any] = {
        "layers": len(spec.layers),
        "width": spec.width,
        "heads": full.heads,
        "kv_heads": full.kv_heads,
        "head_dim": full.head_dim,
        "ffn": spec.layers[0].ffn.ffn_gate.shape[0],
        "vocabulary": spec.vocabulary,
        "tied": spec.tied,
        "context_length": spec.context_length,
        "rope_base": full.rope.base,
        "rope_scale": full.rope.scale,
        "epsilon": spec.epsilon,
    }
    if windowed:
        numbers |= {
            "window": windowed[0].window,
            "layers_with_window": len(windowed),
            "rope_base_with_window": windowed[0].rope.base,
        }
    return numbers


def _stated(gguf: GgufFile) -> dict[str, Any]:
    """The numbers that the file states, unchecked; a list where it has one for each layer."""
    found = {}
    for name, key in _STATED.items():
        full_key = f"{gguf.architecture}.{key}"
        if full_key in gguf.metadata and (gguf.metadata.array_length(full_key) or 0) <= _MOST_VALUES:
            found[name] = _json_value(gguf.metadata[full_key])
    embedding = gguf.tensors.get("token_embd.weight")
    return found | ({"vocabulary": embedding.shape[0]} if embedding else {})


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else str(value)


def _tokenizer(vocabulary: Vocabulary) -> TokenizerFacts:
    def token(id: int | None) -> TokenFacts | None:
        return None if id is None else TokenFacts(id, vocabulary.tokens[id])

    return TokenizerFacts(
        model=vocabulary.model,
        pre=vocabulary.pre,
        tokens=len(vocabulary.tokens),
        bos=token(vocabulary.bos),
        eos=token(vocabulary.eos),
        eot=token(vocabulary.eot),
        add_bos=vocabulary.add_bos,
        add_eos=vocabulary.add_eos,
    )


def _stated_tokenizer(metadata: Metadata) -> TokenizerFacts | None:
    """What a file says of a tokenizer that is not supported."""
    if _TOKENIZER + "model" not in metadata:
        return None

    def token(role: str) -> TokenFacts | None:
        id = metadata.get(f"{_TOKENIZER}{role}_token_id")
        return TokenFacts(id, None) if type(id) is int else None

    def flag(name: str) -> bool | None:
        value = metadata.get(_TOKENIZER + name)
        return value if isinstance(value, bool) else None

    return TokenizerFacts(
        model=str(metadata[_TOKENIZER + "model"]),
        pre=str(metadata.get(_TOKENIZER + "pre", "")),
        tokens=metadata.array_length(_TOKENIZER + "tokens") or 0,
        bos=token("bos"),
        eos=token("eos"),
        eot=token("eot"),
        add_bos=flag("add_bos_token"),
        add_eos=flag("add_eos_token"),
    )


def _template(gguf: GgufFile, identity: Identity) -> TemplateFacts | None:
    keys = [key for key in gguf.metadata if key.startswith(_TEMPLATE + ".")]
    source = gguf.metadata.get(_TEMPLATE, "")
    if not (source and isinstance(source, str)) and not keys:
        return None
    lines = str(source).splitlines()[:_FIRST_LINES]
    return TemplateFacts(
        sha256=identity.template,
        characters=len(str(source)),
        first_lines=tuple(line if len(line) <= _LINE else line[:_LINE] + " ..." for line in lines),
        others=tuple(sorted(key.removeprefix(_TEMPLATE + ".") for key in keys)),
    )


def _targets(spec: ModelSpec) -> tuple[TargetFacts, ...]:
    counts: dict[tuple[str, tuple[int, int], bool], int] = defaultdict(int)
    for linear in spec.linears():
        counts[linear.stem, linear.shape, linear is not spec.output] += 1
    return tuple(TargetFacts(stem, count, shape, default) for (stem, shape, default), count in counts.items())
