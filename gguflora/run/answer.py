"""What `gguflora generate` does: one answer from the real llama.cpp, piece by piece."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from pathlib import Path

from gguflora.config import TemplateConfig
from gguflora.errors import UsageError
from gguflora.gguf import check_fits, identity_of, open_gguf, read_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.run.template import open_template, with_adapters_setting


def answer(
    model: Path,
    prompt: str,
    *,
    lora: Path | None,
    scale: float,
    max_tokens: int,
    raw: bool,
    config: TemplateConfig = TemplateConfig(),  # noqa: B008 (frozen)
) -> Iterator[str]:
    """The pieces of text that llama.cpp generates, the likeliest token each time.

    The template and its options are those of `config`; where it has none, those that the adapter was trained with.

    Raises:
        UsageError: llama.cpp is not installed, or a value is out of range.
        FileError: a file can't be used, or the adapter belongs to another base.
    """
    if max_tokens < 1 or not math.isfinite(scale):
        raise UsageError(f"--max-tokens must be at least 1 and --scale finite, not {max_tokens} and {scale}.")
    gguf = open_gguf(model)
    if lora:
        adapter = read_adapter(lora)
        check_fits(lora, adapter, gguf, identity_of(gguf))
        config = config if raw else with_adapters_setting(config, lora, adapter.chat)
    text = prompt
    if not raw:
        text = open_template(gguf, config).render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    with LlamaModel(model) as llama:
        if lora:
            llama.set_lora_adapter(llama.load_lora_adapter(lora), scale)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character may span tokens
        for token in llama.stream(llama.tokenize(text), max_tokens):
            yield decoder.decode(llama.token_bytes(token, special=False))
        yield decoder.decode(b"", final=True)
