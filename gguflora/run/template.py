"""The chat template that a command works with: the model's own, or the one that the user gives, with its switches."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from pathlib import Path

from gguflora.config import TemplateConfig
from gguflora.errors import UsageError
from gguflora.gguf import ChatSetting, GgufFile
from gguflora.tokenizer import TEMPLATES, ChatTemplate, load_template
from gguflora.tokenizer.template_choice import MAX_TEMPLATE

_log = logging.getLogger(__name__)


def open_template(gguf: GgufFile, config: TemplateConfig, *, warn: bool = True) -> ChatTemplate:
    """The template to use with an opened model.

    Args:
        gguf: the base.
        config: what the user asks for.
        warn: log a warning where the file has no template and ChatML is taken.

    Raises:
        UsageError: the template that was asked for can't be read, or has no such option.
        FileError, ModelError, DataError: as `load_template`.
    """
    source = _source(config.chat_template) if config.chat_template is not None else None
    template = load_template(gguf, source=source, switches=config.switches)
    if warn and template.notice:
        _log.warning("%s", template.notice)
    return template


def chat_setting(config: TemplateConfig) -> ChatSetting:
    """What an adapter's file says of the template that it was trained with."""
    source = _source(config.chat_template) if config.chat_template is not None else ""
    return ChatSetting(
        options=json.dumps(config.switches, sort_keys=True, ensure_ascii=False) if config.switches else "",
        template=hashlib.sha256(source.encode()).hexdigest() if source else "",
    )


def with_adapters_setting(config: TemplateConfig, path: Path, chat: ChatSetting) -> TemplateConfig:
    """`config`, with what the adapter at `path` was trained with where the user gives nothing.

    Where that can't be had, or the user gives something else, a warning is logged: trained one way and served another,
    an adapter is worth less.
    """
    options, template = config.template_option, config.chat_template
    if chat.options and not options:
        options = tuple(f"{name}={json.dumps(value)}" for name, value in json.loads(chat.options).items())
    if chat.template and template is None:
        hashes = {hashlib.sha256(source.encode()).hexdigest(): name for name, source in TEMPLATES.items()}
        template = hashes.get(chat.template)
    used = TemplateConfig(template, options)
    if chat_setting(used) != chat:
        _log.warning(
            "%s was trained with another chat template or other options (%s): give the same with --chat-template and "
            "--template-option.",
            path,
            chat.options or "none",
        )
    return used


def serve_options(config: TemplateConfig) -> str:
    """llama-server's options for the same template and switches, for a shell; empty where it needs none."""
    options = []
    if config.chat_template is not None:
        named = config.chat_template in TEMPLATES
        options += ["--chat-template" if named else "--chat-template-file", config.chat_template]
    if config.switches:
        options += ["--chat-template-kwargs", json.dumps(config.switches, separators=(",", ":"), ensure_ascii=False)]
    return shlex.join(options)


def own_options(config: TemplateConfig) -> str:
    """The same as options of gguflora's own commands."""
    options = [] if config.chat_template is None else ["--chat-template", config.chat_template]
    for option in config.template_option:
        options += ["--template-option", option]
    return shlex.join(options)


def _source(name: str) -> str:
    """The Jinja text of a template that ships with us, or of a file."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    known = ", ".join(TEMPLATES)
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_TEMPLATE + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"--chat-template {name} is neither {known} nor a file with a template ({reason}); give one of them."
        ) from error
    if not text.strip() or len(data) > MAX_TEMPLATE:
        raise UsageError(f"--chat-template {name} is empty or larger than {MAX_TEMPLATE} bytes; give a Jinja template.")
    return text
