"""The model's own tokenizer and chat template, built from what the GGUF says."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguflora.tokenizer.template import ChatTemplate
    from gguflora.tokenizer.template_choice import CHATML, TEMPLATES, load_template
    from gguflora.tokenizer.tokenizer import Tokenizer, load_tokenizer
    from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary

# Imported when they are used: the process of a chat template (template_worker.py) needs none of them, nor numpy.
_HOMES = {
    "CHATML": "template_choice",
    "ChatTemplate": "template",
    "TEMPLATES": "template_choice",
    "Tokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "load_template": "template_choice",
    "load_tokenizer": "tokenizer",
    "read_vocabulary": "vocabulary",
}

__all__ = [
    "CHATML",
    "TEMPLATES",
    "ChatTemplate",
    "Tokenizer",
    "Vocabulary",
    "load_template",
    "load_tokenizer",
    "read_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gguflora.tokenizer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gguflora.tokenizer' has no attribute {name!r}")
