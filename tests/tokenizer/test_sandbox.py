"""A stranger's template runs no code, and what it may build is bounded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate

CHAT = [{"role": "user", "content": "a", "tools": ["x"]}]

# Published payloads and their relatives (the first is the one of CVE-2024-34359); RUN would make the file CANARY.
ESCAPES = (
    "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
    "{{ x()._module.__builtins__['__import__']('os').popen('RUN').read() }}{% endif %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'][1]['__subclasses__']() }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('RUN') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('RUN').read() }}",
    "{{ self._TemplateReference__context.environment.from_string('x') }}",
    "{{ cycler.__init__.__globals__.os.system('RUN') }}",
    "{{ joiner.__init__.__globals__.os.system('RUN') }}",
    "{{ lipsum.__globals__['os'].popen('RUN').read() }}",
    "{{ namespace.__init__.__globals__.os.system('RUN') }}",
    "{{ namespace(a=1)._Namespace__attrs }}",
    "{{ config.__class__.__init__.__globals__['os'].popen('RUN').read() }}",
    "{{ request|attr('application')|attr('__globals__') }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ (messages|map(attribute='__class__')|first).__name__ }}",
    "{{ (messages|sort(attribute='content.__class__.__name__')|first).x.y }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(self) }}",
    "{{ '{0.__class__}'.format_map({'0': 1}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(self) }}",
    "{{ ['{0.__class__}'.format]|map('call', self)|list }}",
    "{{ ('{0.__class__}'|attr('format'))(self) }}",
    "{{ '{0.__class__}'|format(self) }}",
    "{{ '%(a)s' % {'a': self} }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ range.__class__ }}",
    "{{ range(3).__class__ }}",
    "{{ dict.mro() }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{% for x in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in messages %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ undefined_name.__class__.__init__ }}",
    "{{ undefined_name._undefined_exception }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].tools.clear() }}",
    "{{ messages[0].pop('role') }}",
    "{{ eval('1') }}",
    "{{ open('/etc/passwd').read() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('RUN') }}",
    "{% extends '/etc/passwd' %}",
)

_DOUBLE = 40  # doublings: 2^40 characters

# What would take too much memory or time if nothing stopped it.
BOMBS = (
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set x = 10**9 %}{{ x**x }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ range(0, 0 - 10**30, -1) | list }}",
    "{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'a'.zfill(999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 999999999) }}",
    "{{ 'a' | indent(999999999, true) }}",
    "{{ [1] | tojson(indent=999999999) }}",
    "{{ ('a' * 4000000) | replace('a', 'aaaaaaaaaa') }}",
    "{{ ('a' * 4000000).replace('a', 'aaaaaaaaaa') }}",
    "{{ range(50000) | join('a' * 4000000) }}",
    "{% set s = 'a' %}" + "{% set s = s + s %}" * _DOUBLE,
    "{% set s = 'a' %}" + "{% set s = s ~ s %}" * _DOUBLE,
    "{% set s = 'a' %}" + "{% set s = '{}{}'.format(s, s) %}" * _DOUBLE,
    "{% set s = 'a' %}" + "{% set s = [s, s] | join %}" * _DOUBLE,
    "{% set s = 'a' %}" + "{% set s = s.replace('a', 'aa') %}" * _DOUBLE,
    "{% set s = 'a' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * _DOUBLE,
    "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set s = 'a' %}" + "{% set s = m(s) %}" * _DOUBLE,
    "{% set s = [1] %}" + "{% set s = s + s %}" * _DOUBLE,
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% if true %}" * 10_000 + "{% endif %}" * 10_000,
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
    "{{ " + "1+" * 10_000 + "1 }}",
    "{{ " + "-" * 10_000 + "1 }}",
    "{{ " + "9" * 10_000 + " }}",
    "{{ x }}" * 30_000,
)


@pytest.mark.parametrize("payload", ESCAPES)
def test_no_escape(payload: str, tmp_path: Path) -> None:
    """Refused, nothing run, and the messages are as they were."""
    canary = tmp_path / "canary"
    template = ChatTemplate(payload.replace("RUN", f"touch {canary}"))
    with pytest.raises(DataError):
        template.render(CHAT, add_generation_prompt=True)
    assert not canary.exists()
    assert CHAT == [{"role": "user", "content": "a", "tools": ["x"]}]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:60])
def test_bombs_do_not_go_off(bomb: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError):
        ChatTemplate(bomb).render(CHAT)
    # The slowest takes under a second on a quiet machine; unbounded they take minutes or all memory.
    assert time.monotonic() - start < 10


def test_limits_leave_room_for_real_templates() -> None:
    """Just below each limit a template works."""
    assert ChatTemplate("{{ range(100000) | length }}").render([]) == "100000"
    assert ChatTemplate("{{ range(10, 0, -3) | list }}{{ range(5, 1) | list }}").render([]) == "[10, 7, 4, 1][]"
    assert len(ChatTemplate("{{ 'a' * 4194304 }}").render([])) == 4_194_304
    assert ChatTemplate("{{ " + "1+" * 50 + "1 }}").render([]) == "51"
    assert ChatTemplate("{% for i in [1] %}" * 15 + "x" + "{% endfor %}" * 15).render([]) == "x"
    assert (
        ChatTemplate("{{ 2 ** 10 }}{{ 7 % 4 }}{{ [1] * 2 }}{{ 'a' | indent(2, true) }}").render([]) == "10243[1, 1]  a"
    )


def test_a_rendering_has_its_own_allowance() -> None:
    """What one rendering took of `range` is not missing in the next."""
    template = ChatTemplate("{{ range(60000) | length }}")
    assert [template.render([]) for _ in range(3)] == ["60000"] * 3
