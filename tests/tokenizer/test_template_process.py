"""What a template may take of the machine is bounded from outside, and nothing it does harms us."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.errors import DataError, MachineError
from gguflora.tokenizer import ChatTemplate, template_process
from gguflora.tokenizer.template_process import WALL_SECONDS, TemplateFailure, TemplateProcess
from gguflora.tokenizer.template_program import compile_program, run_program

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)
HELLO = [{"role": "user", "content": "hello"}]

# In each the text of the first message decides whether it happens, so that the template can go on afterwards.
LOOPS = (
    "{% set m = [0] * 4000000 %}{% for a in m %}{% for b in m %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
)
HOARD = (
    "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + ['a' * 4000000 ~ i] %}{% endfor %}"
)


def only_for(word: str, body: str) -> ChatTemplate:
    return ChatTemplate(
        "{% if messages[0].content == '" + word + "' %}" + body + "{% endif %}{{ messages[0].content }}"
    )


def asked(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def process_of(template: ChatTemplate) -> subprocess.Popen[bytes]:
    process = template_process.template_process(template.source)._process
    assert process is not None
    return process


@pytest.mark.parametrize("loop", [LOOPS[0], pytest.param(LOOPS[1], marks=pytest.mark.slow)], ids=["loop", "recursion"])
def test_a_template_that_computes_without_end_is_ended(loop: str) -> None:
    """By the system, after its processor time, long before our own patience ends; then it can be used again."""
    template = only_for("loop", loop)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"refuses the messages: it takes too much time\.$"):
        template.render(asked("loop"))
    assert time.monotonic() - start < WALL_SECONDS
    assert template.render(HELLO) == "hello"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's memory")
def test_a_template_that_hoards_is_refused() -> None:
    """Each text is below the sandbox's limit, all together are not; nothing is printed, so no output limit helps."""
    template = only_for("hoard", HOARD)
    with pytest.raises(DataError, match="refuses the messages: it takes more than 1024 MiB of memory"):
        template.render(asked("hoard"))
    assert template.render(HELLO) == "hello"


def test_a_process_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it takes no processor time: only the clock on the wall can tell."""
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render(HELLO) == "hello"
    stopped = process_of(template)
    monkeypatch.setattr(template_process, "WALL_SECONDS", 0.2)
    os.kill(stopped.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="it takes too much time"):
        template.render(HELLO)
    assert stopped.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert template.render(HELLO) == "hello"


def test_a_message_larger_than_a_pipe_does_not_wait_for_a_process_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = ChatTemplate("{{ messages[0].content | length }}")
    large = "x" * 1_000_000
    assert template.render(asked(large)) == "1000000"
    monkeypatch.setattr(template_process, "WALL_SECONDS", 0.2)
    os.kill(process_of(template).pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="it takes too much time"):
        template.render(asked(large))


def test_a_process_that_died_is_named_and_replaced() -> None:
    template = ChatTemplate("{{ messages[0].content }}{# dies #}")
    assert template.render(HELLO) == "hello"
    process_of(template).kill()
    with pytest.raises(DataError, match=r"the process that it runs in was ended by SIGKILL\.$"):
        template.render(HELLO)
    assert template.render(HELLO) == "hello"


def test_an_answer_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content * 1000 }}")
    monkeypatch.setattr(template_process, "MAX_REPLY", 4000)
    with pytest.raises(DataError, match="does not answer as it should"):
        template.render(HELLO)
    monkeypatch.undo()
    assert template.render(HELLO) == "hello" * 1000


def test_a_reason_is_a_sentence_and_not_a_bomb() -> None:
    with pytest.raises(DataError) as caught:
        ChatTemplate("{{ raise_exception('a' * 4000000) }}").render(HELLO)
    assert len(str(caught.value)) < 3000


def test_an_interrupt_leaves_no_answer_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}{# interrupted #}")
    assert template.render(HELLO) == "hello"

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(template_process, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        template.render(asked("first"))
    monkeypatch.undo()
    assert template.render(asked("second")) == "second"


def test_one_process_serves_all_renderings_of_equal_templates() -> None:
    first, second = (ChatTemplate("{{ messages[0].content }}{# shared #}", origin=name) for name in "ab")
    assert first.render(HELLO) == second.render(HELLO) == "hello"
    assert process_of(first).pid == process_of(second).pid
    with pytest.raises(DataError):  # a refusal does not end it
        first.render([])
    before = process_of(first).pid
    assert first.render(HELLO) == "hello"
    assert process_of(first).pid == before


def test_threads_get_their_own_answers() -> None:
    template = ChatTemplate("{{ messages[0].content }}{# threads #}")
    wrong: list[str] = []

    def ask(name: str) -> None:
        wrong.extend(text for _ in range(100) if (text := template.render(asked(name))) != name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SHOW = "{{ messages | tojson }}{{ messages }}{{ strftime_now('%c') }}{{ '\\0' }}"


@given(messages=st.lists(st.dictionaries(st.text(st.characters(codec=None)), plain, max_size=3), max_size=3))
@settings(deadline=None, max_examples=60)
def test_what_goes_over_the_pipe_comes_out_as_it_was(messages: list[dict[str, Any]]) -> None:
    """Control characters, halves of surrogate pairs, -0.0, large integers: as if it were rendered in this process."""
    process = template_process.template_process(SHOW)
    assert process.render({"messages": messages}, NOW) == run_program(
        compile_program(SHOW), {"messages": messages}, NOW
    )


def test_a_number_too_long_to_write_is_refused() -> None:
    with pytest.raises(DataError, match="refuses the messages: Exceeds the limit"):
        ChatTemplate("{{ messages }}").render([{"role": "user", "content": 10**5000}])


def test_no_process_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MachineError, match=r"none could be started \(No such file or directory\)"):
        ChatTemplate("{{ messages }}{# none #}").render(HELLO)


def test_a_process_that_fails_to_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as a Python without Jinja."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TemplateFailure, match="the process that it runs in ended with status 1"):
        TemplateProcess("x")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


def test_the_process_starts_with_little() -> None:
    """It stands between a command and its first line: neither numpy nor the tokenizers are loaded for it."""
    done = run_python(
        "import sys, gguflora.tokenizer.template_worker\n"
        "print(sorted({'numpy', 'torch', 'tokenizers', 'subprocess', 'gguflora.gguf'} & sys.modules.keys()))"
    )
    assert done.stdout.strip() == "[]", done.stderr


LIMITED = """
import os, resource, socket, sys
from gguflora.tokenizer.template_worker import _limit_resources
standard_output = sys.stdout
_limit_resources()
def refused(act):
    try:
        act()
    except OSError as error:
        return True
    return False
print(
    refused(lambda: open("/etc/passwd")), refused(socket.socket), refused(os.pipe),
    resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_AS)[0] <= 2**30,
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_the_process_can_open_nothing() -> None:
    """No file, no socket, no pipe; no byte of a file that is open already; a bound on its memory."""
    done = run_python(LIMITED)
    assert done.stdout.split() == ["True", "True", "True", "(0,", "0)", "True"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_the_process_ends_with_ours_however_that_ends() -> None:
    code = (
        "import os, signal\n"
        "from gguflora.tokenizer.template_process import template_process\n"
        "print(template_process('x')._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python(code)
    assert done.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 20
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X"):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def test_after_a_fork_each_side_has_its_own_process() -> None:
    code = (
        "import os\n"
        "from gguflora.tokenizer.template_process import template_process\n"
        "from datetime import datetime\n"
        "ask = lambda text: template_process('{{ x }}').render({'x': text}, datetime(2026, 1, 1))\n"
        "assert ask('before') == 'before'\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    code = 0 if [ask(str(n)) for n in range(50)] == [str(n) for n in range(50)] else 1\n"
        "    [template_process(str(n)) for n in range(9)]\n"  # so many that the parent's is forgotten here
        "    os._exit(code)\n"
        "assert [ask(str(-n)) for n in range(50)] == [str(-n) for n in range(50)]\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert ask('after') == 'after'\n"
        "print('done')\n"
    )
    done = run_python(code)
    assert done.stdout.strip() == "done", done.stderr
