"""The chat template that the GGUF carries: messages -> the text that llama-server would give the model.

Source: common/chat.cpp in llama.cpp, as vendored in llama-cpp-python 0.3.36; numbers are its lines. Messages are
rewritten as there for templates that know no system role or want tool arguments as objects (1277-1291,
capabilities.py), and for some families (families.py). Left out is what it does for templates that want all content in
parts (1242) and for the order of DeepSeek V4's and the form of Gemma 4's tool results (1187, 1199): such a template
refuses, or gets the messages as they are.

A template is a stranger's program, so it runs in a process of its own (template_process.py).
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguflora.errors import DataError, UsageError
from gguflora.tokenizer.capabilities import (
    shows_thinking,
    takes_system_message,
    wants_argument_objects,
    with_argument_objects,
    with_system_in_next,
)
from gguflora.tokenizer.families import rewritten
from gguflora.tokenizer.template_process import TemplateFailure, TemplateProcess, template_process

MAX_MESSAGE_DEPTH = 64


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
        switches: variables that every rendering gets, such as enable_thinking.
        absent: why there is no template to render with, and what to do; empty where there is one.
        notice: what to warn about: that the file has no template, and which one is taken.
    """

    source: str
    tool_source: str | None = None
    origin: str = "the chat template"
    now: datetime.datetime = field(default_factory=datetime.datetime.now)
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = False
    add_eos: bool = False
    switches: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""
    notice: str = ""

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **switches: Any
    ) -> str:
        """The text of a conversation; tokenize it with `add_special` and `parse_special`.

        Args:
            messages: each with `role` and `content`, and what else the template reads; plain JSON values alone.
            add_generation_prompt: end where the assistant's answer starts.
            switches: variables that the template reads, such as `tools` or `enable_thinking` (if not given, whether
                the template shows any thinking, as in llama-server). None is the same as absent.

        Raises:
            DataError: the template refuses the messages, breaks a limit, or is no valid template.
            UsageError: the template has no such switch.
            MachineError: the system starts no process for the template.
        """
        if self.absent:
            raise DataError(self.absent)
        plain: Sequence[dict[str, Any]] = [_plain(message) for message in messages]
        if plain and plain[0].get("role") == "system" and not self._takes_system:
            plain = with_system_in_next(plain)
        if any("tool_calls" in message for message in plain) and self._wants_objects:
            plain = with_argument_objects(plain)
        return self._rendered(plain, add_generation_prompt, switches)

    def check(self) -> None:
        """Make sure that the template is valid and reads its switches.

        Raises:
            DataError: it is no valid template.
            UsageError: it has no such switch.
        """
        if not self.absent:
            self._require_known(self._program(self.source), self.switches)

    def reads(self, switch: str) -> bool:
        """Whether the template looks at a switch."""
        return not self.absent and switch in self._program(self.source).names

    @functools.cached_property
    def _takes_system(self) -> bool:
        return takes_system_message(lambda rows: self._rendered(rows, True, {}))

    @functools.cached_property
    def _wants_objects(self) -> bool:
        return wants_argument_objects(lambda rows: self._rendered(rows, True, {}))

    @functools.cached_property
    def _thinks(self) -> bool:
        return shows_thinking(lambda rows, thinking: self._rendered(rows, True, {"enable_thinking": thinking}))

    def _rendered(
        self, rows: Sequence[dict[str, Any]], add_generation_prompt: bool, switches: Mapping[str, Any]
    ) -> str:
        """The text of messages that look as the template wants them."""
        given = {name: value for name, value in (dict(self.switches) | dict(switches)).items() if value is not None}
        source = self.tool_source if self.tool_source and "tools" in given else self.source
        program = self._program(source)
        self._require_known(program, given)
        if "<|channel|>" not in source:  # 1273
            rows = [row | {"role": "system"} if row.get("role") == "developer" else row for row in rows]
        rows = rewritten(rows, source)
        if "enable_thinking" in program.names and "enable_thinking" not in given:
            given["enable_thinking"] = self._thinks
        variables = self._defaults() | {name: _plain(value) for name, value in given.items()} | {"messages": rows}
        if add_generation_prompt:  # absent otherwise (937)
            variables["add_generation_prompt"] = True
        return self._without_added_tokens(self._run(program, variables))

    def _require_known(self, program: TemplateProcess, given: Mapping[str, Any]) -> None:
        unknown = sorted(given.keys() - program.names)
        if unknown:
            raise UsageError(
                f"The chat template of {self.origin} does not use {', '.join(unknown)}: "
                f"leave it out, or give one of {', '.join(sorted(program.names)) or 'none'}."
            )

    def _defaults(self) -> dict[str, Any]:
        """What llama-server lets a template see besides the messages (915, 1080)."""
        return {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "datetime": self.now.strftime("%b %d %Y"),
            "date_string": self.now.strftime("%d %b %Y"),
        }

    def _program(self, source: str) -> TemplateProcess:
        try:
            return template_process(source)
        except TemplateFailure as error:
            raise DataError(f"The chat template of {self.origin} can't be used: {error}.") from error

    def _run(self, program: TemplateProcess, variables: dict[str, Any]) -> str:
        try:
            return program.render(variables, self.now)
        except TemplateFailure as error:
            raise DataError(f"The chat template of {self.origin} refuses the messages: {error}.") from error

    def _without_added_tokens(self, text: str) -> str:
        """Take off what tokenizing will add again (959)."""
        if self.add_bos:
            text = text.removeprefix(self.bos_token)
        if self.add_eos:
            text = text.removesuffix(self.eos_token)
        return text


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
