"""The model's own tokenizer and chat template, built from what the GGUF says."""

from gguflora.tokenizer.template import ChatTemplate, load_template
from gguflora.tokenizer.tokenizer import Tokenizer, load_tokenizer
from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary

__all__ = ["ChatTemplate", "Tokenizer", "Vocabulary", "load_template", "load_tokenizer", "read_vocabulary"]
