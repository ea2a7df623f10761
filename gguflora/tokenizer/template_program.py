"""A chat template compiled and run. Only template_worker.py does this, in a process of its own.

Source: common/chat.cpp in llama.cpp, as vendored in llama-cpp-python 0.3.36; numbers are its lines.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, meta

from gguflora.tokenizer.sandbox import MAX_TEXT, TemplateLimit, check_tree, counted_range, make_environment

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

MAX_REASON = 2_000  # characters: a template may raise any text

_OURS = {"messages", "bos_token", "eos_token", "add_generation_prompt", "strftime_now", "range"}


@dataclass(frozen=True)
class Program:
    """A compiled template and the names of its switches."""

    template: Template
    names: frozenset[str]


def compile_program(source: str) -> Program:
    """Compile Jinja text.

    Raises:
        Exception: of any kind: the text is no valid template, or breaks a limit. `reason` says which.
    """
    for mark, condition in _TURNED_OFF:
        if mark in source:
            source = source.replace(condition, "{%- if false %}")
    environment = make_environment()
    tree = environment.parse(source)
    check_tree(tree)
    names = meta.find_undeclared_variables(tree) - _OURS - environment.globals.keys()
    return Program(environment.from_string(tree), frozenset(names))


def run_program(program: Program, variables: Mapping[str, Any], now: datetime.datetime) -> str:
    """The text that a template writes.

    Args:
        program: from `compile_program`.
        variables: what it may read.
        now: what its clock shows.

    Raises:
        Exception: of any kind: what the template raises, or a limit that it breaks. `reason` says which.
    """
    parts: list[str] = []
    size = 0
    for part in program.template.generate(variables, range=counted_range(), strftime_now=now.strftime):
        parts.append(part)
        size += len(part)
        if size > MAX_TEXT:
            raise TemplateLimit(f"its output has more than {MAX_TEXT} characters")
    return "".join(parts)


def load_all() -> None:
    """Load what Python and Jinja load at its first use (a codec, what rewrites tracebacks): a process that may open no
    file any more could not.
    """
    try:
        run_program(compile_program("{{ 'x' }}{{ 1 / 0 }}"), {}, datetime.datetime.now())
    except ZeroDivisionError:
        return
    raise AssertionError("the template raised nothing")


def reason(error: Exception) -> str:
    """Why a template could not be compiled or run, as part of a sentence."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    line = getattr(error, "lineno", None)
    text = str(error)[:MAX_REASON].strip().rstrip(".") or type(error).__name__
    return f"{text} (line {line})" if line else text
