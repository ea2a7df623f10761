"""The chat template that the GGUF carries: messages -> the text that llama-server would give the model.

Source: common/chat.cpp in llama.cpp, as vendored in llama-cpp-python 0.3.36; numbers are its lines. llama-server also
rewrites messages for templates that know no system role, that want content in parts or tool arguments as objects
(1242, 1277-1291), and has code of its own for some families (1090); that is left out: such a template refuses, or gets
the messages as they are.
"""

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguflora.errors import DataError, FileError, UsageError
from gguflora.gguf import GgufFile
from gguflora.tokenizer.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from jinja2 import Template

_log = logging.getLogger(__name__)

MAX_TEMPLATE = 2**20  # bytes
MAX_MESSAGE_DEPTH = 64

_KEY = "tokenizer.chat_template"

CHATML = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""
"""What llama.cpp takes for a model without a template (715)."""

# (a text that marks the family, part of the line, the line): llama.cpp turns these conditions off (790, 801).
_TURNED_OFF = (
    (
        "<|channel|>",
        '{%- if "<|channel|>analysis<|message|>" in message.content or '
        '"<|channel|>final<|message|>" in message.content %}',
    ),
    (
        "[TOOL_CALLS]",
        "{%- if (message['content'] is none or message['content'] == '' or "
        "message['content']|length == 0) and (message['tool_calls'] is not defined or "
        "message['tool_calls'] is none or message['tool_calls']|length == 0) %}",
    ),
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it needs from its model. Make one with `load_template`.

    Attributes:
        source: the Jinja text.
        tool_source: the Jinja text for messages with tools, where the model has another.
        origin: where the template is from, for error messages.
        now: the clock that the template sees: the same for every rendering.
        bos_token, eos_token: texts of these tokens, empty where the model has none.
        add_bos, add_eos: whether tokenizing adds them, so that they are taken off the text.
    """

    source: str
    tool_source: str | None = None
    origin: str = "the chat template"
    now: datetime.datetime = field(default_factory=datetime.datetime.now)
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = False
    add_eos: bool = False

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **switches: Any
    ) -> str:
        """The text of a conversation; tokenize it with `add_special` and `parse_special`.

        Args:
            messages: each with `role` and `content`, and what else the template reads; plain JSON values alone.
            add_generation_prompt: end where the assistant's answer starts.
            switches: variables that the template reads, such as `tools` or `enable_thinking` (true if not given, as
                in llama.cpp). None is the same as absent.

        Raises:
            DataError: the template refuses the messages, breaks a limit, or is no valid template.
            UsageError: the template has no such switch.
        """
        given = {name: value for name, value in switches.items() if value is not None}
        source = self.tool_source if self.tool_source and "tools" in given else self.source
        program = self._program(source)
        unknown = sorted(given.keys() - program.names)
        if unknown:
            raise UsageError(
                f"The chat template of {self.origin} does not use {', '.join(unknown)}: "
                f"leave it out, or give one of {', '.join(sorted(program.names)) or 'none'}."
            )
        plain = [_plain(message) for message in messages]
        if "<|channel|>" not in source:  # 1273
            plain = [
                message | {"role": "system"} if message.get("role") == "developer" else message for message in plain
            ]
        variables = self._defaults() | {name: _plain(value) for name, value in given.items()} | {"messages": plain}
        if add_generation_prompt:  # absent otherwise (937)
            variables["add_generation_prompt"] = True
        return self._without_added_tokens(self._run(program, variables))

    def _defaults(self) -> dict[str, Any]:
        """What llama-server lets a template see besides the messages (915, 1080)."""
        return {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "enable_thinking": True,
            "datetime": self.now.strftime("%b %d %Y"),
            "date_string": self.now.strftime("%d %b %Y"),
            "strftime_now": self.now.strftime,
        }

    def _program(self, source: str) -> _Program:
        try:
            return _compile(source)
        except Exception as error:  # the template's fault whatever it is: the compiler only sees the template
            raise DataError(f"The chat template of {self.origin} can't be used: {_reason(error)}.") from error

    def _run(self, program: _Program, variables: dict[str, Any]) -> str:
        from gguflora.tokenizer.sandbox import MAX_TEXT, TemplateLimit, counted_range

        parts: list[str] = []
        size = 0
        try:
            for part in program.template.generate(variables, range=counted_range()):
                parts.append(part)
                size += len(part)
                if size > MAX_TEXT:
                    raise TemplateLimit(f"its output has more than {MAX_TEXT} characters")
        except Exception as error:  # raised by the template's own code, or by what that code was given
            raise DataError(f"The chat template of {self.origin} refuses the messages: {_reason(error)}.") from error
        return "".join(parts)

    def _without_added_tokens(self, text: str) -> str:
        """Take off what tokenizing will add again (959)."""
        if self.add_bos:
            text = text.removeprefix(self.bos_token)
        if self.add_eos:
            text = text.removesuffix(self.eos_token)
        return text


def load_template(
    gguf: GgufFile, *, vocabulary: Vocabulary | None = None, now: datetime.datetime | None = None
) -> ChatTemplate:
    """The chat template of an opened GGUF; llama.cpp's own (ChatML), with a warning, where it has none.

    Args:
        gguf: the base.
        vocabulary: its vocabulary, where it has been read already.
        now: what the template's clock shows; the time of this call if absent.

    Raises:
        FileError: the template is no text, or larger than MAX_TEMPLATE; or as `read_vocabulary`.
        ModelError: as `read_vocabulary`.
        DataError: the template is no valid template.
    """
    source, tool_source = _source(gguf, _KEY), _source(gguf, _KEY + ".tool_use")
    if not source and not tool_source:
        _log.warning("%s has no chat template: taking llama.cpp's default, ChatML.", gguf.path)
    if source in ("", "chatml"):
        source = tool_source or CHATML
    vocabulary = vocabulary or read_vocabulary(gguf)
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
    )
    template._program(source)  # so that a broken template is found here and not after the data is read
    return template


def _source(gguf: GgufFile, key: str) -> str:
    source = gguf.metadata.get(key, "")
    if not isinstance(source, str):
        raise FileError(f"{gguf.path} is not valid: {key} is not text.")
    if len(source.encode()) > MAX_TEMPLATE:
        raise FileError(f"{gguf.path} has a chat template of more than {MAX_TEMPLATE} bytes ({key}): it is not used.")
    return source


@dataclass(frozen=True)
class _Program:
    """A compiled template and the names of its switches."""

    template: Template
    names: frozenset[str]


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> _Program:
    from jinja2 import meta

    from gguflora.tokenizer.sandbox import check_tree, make_environment

    for mark, condition in _TURNED_OFF:
        if mark in source:
            source = source.replace(condition, "{%- if false %}")
    environment = make_environment()
    tree = environment.parse(source)
    check_tree(tree)
    ours = {"messages", "bos_token", "eos_token", "add_generation_prompt", "strftime_now", "range"}
    names = meta.find_undeclared_variables(tree) - ours - environment.globals.keys()
    return _Program(environment.from_string(tree), frozenset(names))


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy made of dicts, lists, text, numbers, true, false and none alone."""
    if depth > MAX_MESSAGE_DEPTH:
        raise DataError(f"A message nests deeper than {MAX_MESSAGE_DEPTH}: make it flatter.")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise DataError(
        f"A message holds a {type(value).__name__}: only text, numbers, lists and mappings can be rendered."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    line = getattr(error, "lineno", None)
    text = str(error).strip().rstrip(".") or type(error).__name__
    return f"{text} (line {line})" if line else text
