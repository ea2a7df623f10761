"""The model's own tokenizer and chat template, built from what the GGUF says."""

from gguflora.tokenizer.template import ChatTemplate
from gguflora.tokenizer.template_choice import CHATML, TEMPLATES, load_template
from gguflora.tokenizer.tokenizer import Tokenizer, load_tokenizer
from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary

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
