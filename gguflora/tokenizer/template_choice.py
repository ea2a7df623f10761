"""Which chat template a model is trained with: the one in its file, one that the user gives, or ChatML."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from gguflora.errors import FileError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.template import ChatTemplate
from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary

MAX_TEMPLATE = 2**20  # bytes

_KEY = "tokenizer.chat_template"

CHATML = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""
"""What llama.cpp takes for a model without a template (common/chat.cpp:715); its `--chat-template chatml`."""

TEMPLATES = {"chatml": CHATML}
"""Templates that can be asked for by name."""

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def load_template(
    gguf: GgufFile,
    *,
    vocabulary: Vocabulary | None = None,
    now: datetime.datetime | None = None,
    source: str | None = None,
    switches: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """The chat template to use with an opened GGUF.

    Where the file has none and none is given it is ChatML, with a warning, if the vocabulary has ChatML's tokens;
    otherwise a template that refuses every conversation and says what to do.

    Args:
        gguf: the base.
        vocabulary: its vocabulary, where it has been read already.
        now: what the template's clock shows; the time of this call if absent.
        source: Jinja text to use in place of the file's templates.
        switches: variables that every rendering gets.

    Raises:
        FileError: the template is no text, or larger than MAX_TEMPLATE; or as `read_vocabulary`.
        ModelError: as `read_vocabulary`.
        DataError: the template is no valid template.
        UsageError: the template reads no such switch.
    """
    vocabulary = vocabulary or read_vocabulary(gguf)
    tool_source = "" if source else _source(gguf, _KEY + ".tool_use")
    source = source or _source(gguf, _KEY)
    absent = notice = ""
    if not source and not tool_source:
        if all(token in vocabulary.ids for token in _CHATML_TOKENS):
            notice = f"{gguf.path} has no chat template: taking llama.cpp's default, ChatML."
        else:
            absent = (
                f"{gguf.path} has no chat template, and its vocabulary lacks ChatML's {' and '.join(_CHATML_TOKENS)}: "
                "give --chat-template with the model's own, or examples of prompt and completion."
            )
    if source in ("", "chatml"):
        source = tool_source or CHATML
    # As they stand: a control token is written so. (llama.cpp would decode an ordinary token; none is BOS in practice.)
    bos, eos = ("" if token is None else vocabulary.tokens[token] for token in (vocabulary.bos, vocabulary.eos))
    template = ChatTemplate(
        source=source,
        tool_source=tool_source or None,
        origin=str(gguf.path),
        now=now or datetime.datetime.now(),
        bos_token=bos,
        eos_token=eos,
        add_bos=vocabulary.add_bos,
        add_eos=vocabulary.add_eos,
        switches=dict(switches or {}),
        absent=absent,
        notice=notice,
    )
    template.check()  # so that a broken template is found here and not after the data is read
    return template


def _source(gguf: GgufFile, key: str) -> str:
    source = gguf.metadata.get(key, "")
    if not isinstance(source, str):
        raise FileError(f"{gguf.path} is not valid: {key} is not text.")
    if len(source.encode()) > MAX_TEMPLATE:
        raise FileError(f"{gguf.path} has a chat template of more than {MAX_TEMPLATE} bytes ({key}): it is not used.")
    return source
