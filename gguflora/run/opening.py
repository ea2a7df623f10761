"""From a path to everything that a model file gives: spec, tokenizer, template, identity."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguflora.arch import ModelSpec, check_types, model_spec
from gguflora.config import TemplateConfig
from gguflora.events import ModelLoaded
from gguflora.gguf import GgufFile, Identity, identity_of, open_gguf
from gguflora.run.template import open_template
from gguflora.tokenizer import ChatTemplate, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Base:
    """An opened model: what it is, before its weights are loaded."""

    gguf: GgufFile
    spec: ModelSpec
    tokenizer: Tokenizer
    template: ChatTemplate
    identity: Identity


def open_base(path: Path, config: TemplateConfig = TemplateConfig()) -> Base:  # noqa: B008 (frozen)
    """Open a model file and check that all of it is understood; `config` says which template conversations get.

    Raises:
        UsageError: the template that was asked for can't be used.
        FileError: the file is damaged or incomplete.
        ModelError: its architecture, a tensor or a type is not supported.
    """
    gguf = open_gguf(path)
    spec = model_spec(gguf)
    check_types(gguf)
    return Base(gguf, spec, load_tokenizer(gguf), open_template(gguf, config, warn=False), identity_of(gguf))


def model_loaded(base: Base) -> ModelLoaded:
    """What to tell about an opened model."""
    gguf = base.gguf
    types = Counter(info.type.name for info in gguf.tensors.values())
    return ModelLoaded(
        path=str(gguf.path),
        name=str(gguf.metadata.get("general.name", gguf.path.stem)),
        architecture=gguf.architecture,
        parameters=sum(prod(info.shape) for info in gguf.tensors.values()),
        file_bytes=gguf.file_bytes,
        types=dict(types.most_common()),
        base=base.identity.base,
        template=base.identity.template,
    )
