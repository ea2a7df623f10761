"""Where a stranger's chat template runs: only what llama.cpp's own template engine offers, and bounded.

A template is a program from the GGUF. It is given strings, numbers, lists and dicts, the filters and methods listed
here, and five functions; it can't reach a Python object beyond them. Bounded: its size, its syntax tree, what
operators, filters, macros and blocks build, the numbers that `range` gives in all, and its output. The time that loops
and recursive macros take, and the memory of many large texts at once, are bounded by the process that all of this runs
in alone (template_worker.py).

Sources: common/jinja/value.cpp and lexer.cpp in llama.cpp (as vendored in llama-cpp-python 0.3.36) for what exists
and how it behaves; _compile_jinja_template in transformers' utils/chat_template_utils.py for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_indent, do_replace
from jinja2.filters import sync_do_join as do_join
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TEXT = 4 * 2**20  # characters in one string, items in one list, characters of output
MAX_NODES = 20_000  # the largest of llama.cpp's 70 templates has less than 4,000
MAX_DEPTH = 64  # theirs: at most 29
MAX_RANGE = 100_000  # numbers that `range` may give in one rendering
MAX_INDENT = 100

# fmt: off
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "endswith", "format", "lower", "lstrip", "replace", "rsplit", "rstrip", "split", "startswith",
        "strip", "title", "upper",
    )),
    dict: frozenset(("get", "items", "keys", "values")),
    LoopContext: frozenset((
        "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
        "revindex", "revindex0",
    )),
}

_JINJA_FILTERS = (
    "abs", "capitalize", "count", "dictsort", "first", "float", "int", "items", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "string", "sum",
    "title", "trim", "unique", "upper", "wordcount",
)
# fmt: on


class TemplateLimit(TemplateError):
    """The template asks for more than it may have."""


class _Generator(CodeGenerator):
    """Jinja's compiler, with `~` going through the environment as the other operators do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write the code of `a ~ b`."""
        self.write("environment.concat_values((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with lists of what is allowed in place of lists of what is not."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether `obj.attr`, which is no key of a dict, may be read."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), frozenset())
        return attr in allowed and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once: Jinja's own lets what is not allowed pass as empty text."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for templates")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with plain `{}` alone, as in llama.cpp: no attributes, no widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        if "{" in value.__self__.replace("{}", ""):
            raise SecurityError("format() may only have plain {} fields")

        def bounded(*arguments: Any) -> str:
            _limit(len(value.__self__) + sum(len(text) for text in arguments if isinstance(text, str)))
            return wrapped(*arguments)

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, refused where its result would be too large."""
        _check_size(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call; `replace` is refused where its result would be too large."""
        text = getattr(callee, "__self__", None)
        if isinstance(text, str) and callee.__name__ == "replace" and len(args) > 1:
            _check_replace(text, args[0], args[1])
        return super().call(context, callee, *args, **kwargs)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the output of a macro or a `{% set %}` block."""
        texts = list(parts)
        _limit(sum(map(len, texts)))
        return "".join(texts)

    def concat_values(self, values: tuple[Any, ...]) -> str:
        """The operator `~`."""
        return self.concat(map(str, values))


class _GenerationBlocks(Extension):
    """`{% generation %}` marks what was generated, for transformers; llama.cpp passes over it (parser.cpp:207)."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's content as if the tags were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The environment that every template is compiled in; what changes per rendering comes from `variables`."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
    )
    environment.filters = {name: FILTERS[name] for name in _JINJA_FILTERS} | {
        "d": _default,
        "default": _default,
        "indent": _indent,
        "join": _join,
        "replace": _replace,
        "safe": str,
        "tojson": _tojson,
    }
    environment.globals = {"dict": dict, "namespace": Namespace, "raise_exception": _raise_exception}
    return environment


def counted_range() -> Callable[..., range]:
    """`range` for one rendering, with MAX_RANGE numbers to give in all."""
    left = MAX_RANGE

    def bounded(*arguments: int) -> range:
        nonlocal left
        numbers = range(*arguments)
        # Not len(), which fails beyond the machine's word.
        count = max(0, -((numbers.start - numbers.stop) // numbers.step))
        left -= count
        if left < 0:
            raise TemplateLimit(f"range() gave more than {MAX_RANGE} numbers")
        return numbers

    return bounded


def check_tree(tree: nodes.Template) -> None:
    """Refuse a template that is too large or too deep to compile.

    Raises:
        TemplateLimit: it has more than MAX_NODES nodes or is deeper than MAX_DEPTH.
    """
    level: list[nodes.Node] = [tree]
    count = depth = 0
    while level:
        count += len(level)
        depth += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise TemplateLimit(f"it has more than {MAX_NODES} parts or nests deeper than {MAX_DEPTH}")
        level = [child for node in level for child in node.iter_child_nodes()]


def _check_size(operator: str, left: Any, right: Any) -> None:
    sized = (str, list, tuple)
    if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        _limit(len(left) + len(right))
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, sized) and isinstance(other, int):
                _limit(len(one) * other)
        if isinstance(left, int) and isinstance(right, int):
            _limit(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _limit(left.bit_length() * right)
    elif operator == "%" and isinstance(left, str):
        raise SecurityError("% can't format text here")  # nor in llama.cpp; "%999999999d" would be a large text


def _check_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _limit(len(text) + text.count(old) * len(new))


def _limit(size: int) -> None:
    if size > MAX_TEXT:
        raise TemplateLimit(f"it builds a value of more than {MAX_TEXT} characters")


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _default(value: Any, default: Any = "", boolean: bool = False) -> Any:
    """As in llama.cpp, and unlike Jinja's, none is replaced too (value.cpp, default_value)."""
    absent = not value if boolean else value is None or isinstance(value, Undefined)
    return default if absent else value


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = width if isinstance(width, int) else len(width)
    if size > MAX_INDENT:
        raise TemplateLimit(f"indent() by more than {MAX_INDENT}")
    _limit(len(text) + (text.count("\n") + 1) * size)
    return do_indent(text, width, first, blank)


def _join(context: Any, value: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items = list(value)
    _limit(len(separator) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
    return do_join(context, items, separator, attribute)


_join.jinja_pass_arg = do_join.jinja_pass_arg  # type: ignore[attr-defined]


def _replace(context: Any, text: str, old: str, new: str, count: int | None = None) -> str:
    text = str(text)
    _check_replace(text, old, new)
    return do_replace(context, text, old, new, count)


_replace.jinja_pass_arg = do_replace.jinja_pass_arg  # type: ignore[attr-defined]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as text, without the HTML escapes of Jinja's own."""
    if indent is not None and indent > MAX_INDENT:
        raise TemplateLimit(f"tojson() with an indent of more than {MAX_INDENT}")
    if isinstance(value, Generator):  # of `map` and `select`: llama.cpp's give lists
        value = list(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
