"""The rules of the house that no other tool keeps; each in a moment, so that they run with everything."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gguflora
from gguflora.arch.architectures import ARCHITECTURES
from gguflora.cli import app
from gguflora.tokenizer.pretokenizers import OF_CHARACTERS, PRETOKENIZERS

PACKAGE = Path(gguflora.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450

OPTIONS = {
    "train": [
        "MODEL",
        "DATA",
        "--output-dir",
        "--rank",
        "--alpha",
        "--target",
        "--rslora",
        "--dropout",
        "--column",
        "--source-weight",
        "--on-bad-record",
        "--max-length",
        "--overlong",
        "--overlap",
        "--train-on",
        "--validation",
        "--validation-split",
        "--token-cache",
        "--chat-template",
        "--template-option",
        "--learning-rate",
        "--schedule",
        "--warmup-steps",
        "--weight-decay",
        "--max-grad-norm",
        "--epochs",
        "--max-steps",
        "--batch-size",
        "--batch-tokens",
        "--eval-steps",
        "--save-steps",
        "--logging-steps",
        "--seed",
        "--threads",
        "--dtype",
        "--weights",
        "--micro-batch-tokens",
        "--packing",
        "--recompute",
        "--memory",
        "--kernels",
        "--init-adapter",
        "--resume",
        "--dry-run",
        "--json",
    ],
    "eval": [
        "MODEL",
        "DATA",
        "--column",
        "--source-weight",
        "--on-bad-record",
        "--lora",
        "--scale",
        "--chat-template",
        "--template-option",
        "--json",
    ],
    "generate": [
        "MODEL",
        "PROMPT",
        "--lora",
        "--scale",
        "--max-tokens",
        "--raw",
        "--chat-template",
        "--template-option",
    ],
    "tokenize": ["MODEL", "TEXT", "--file", "--no-bos", "--no-parse-special", "--json"],
    "inspect": ["FILE", "--pairs", "--json"],
    "render": ["MODEL", "MESSAGES", "--no-generation-prompt", "--chat-template", "--template-option", "--json"],
    "data show": [
        "MODEL",
        "DATA",
        "--column",
        "--source-weight",
        "--on-bad-record",
        "--max-length",
        "--overlong",
        "--overlap",
        "--train-on",
        "--validation",
        "--validation-split",
        "--token-cache",
        "--chat-template",
        "--template-option",
        "--ids",
        "--limit",
    ],
    "data check": [
        "MODEL",
        "DATA",
        "--column",
        "--source-weight",
        "--on-bad-record",
        "--max-length",
        "--overlong",
        "--overlap",
        "--train-on",
        "--validation",
        "--validation-split",
        "--token-cache",
        "--chat-template",
        "--template-option",
        "--batch-size",
        "--batch-tokens",
        "--epochs",
        "--seed",
        "--json",
    ],
    "doctor": ["--json"],
}
OPTIONS["plan"] = [
    *(option for option in OPTIONS["train"] if option not in ("--output-dir", "--resume", "--dry-run", "--json")),
    "--time-steps",
    "--no-time",
    "--json",
]
"""Every command and option. Others use them in scripts: what is taken away here is broken there."""

# Where a file is opened for writing other than through the one door, storage.py, and how many times.
OTHER_DOORS = {
    "cli.py": 2,  # the traceback of a bug; /dev/null in place of a reader that went away
    "kernels/compile_worker.py": 1,  # a number that Linux keeps (proc(5))
    "report/metrics.py": 1,  # a line is appended
    "run/folder.py": 1,  # the lock
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the last part of what is called."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            function = node.func
            yield function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""), node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_says_what_it_is_and_has_room_for_one_idea(path: Path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"
    assert len(text.splitlines()) <= MOST_LINES


def test_no_torch_where_a_command_must_start_at_once():
    """One process for all; a file that imports torch at its top fails it."""
    rooms = (
        "gguf",
        "arch",
        "tokenizer",
        "data",
        "llamacpp",
        "config",
        "events",
        "errors",
        "storage",
        "cli",
        "plan_command",
        "run_options",
    )
    names_in_run = (
        "inspection",
        "rendering",
        "doctor",
        "answer",
        "opening",
        "data_check",
        "template",
        "template_check",
    )
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    names = ["gguflora", *(f"gguflora.{room}" for room in rooms), *(f"gguflora.run.{name}" for name in names_in_run)]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# In `tokenizer.ggml.model` "llama" means SentencePiece, and `tokenizer.ggml.pre` names splitters after models.
KINDS_OF_TOKENIZER = {"llama", "gemma4", "t5", "rwkv", "plamo2", *PRETOKENIZERS, *OF_CHARACTERS}


def strings(path: Path) -> Iterator[ast.Constant]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_architectures_are_named_in_their_table_alone(path: Path):
    """What a model is must follow from its row and its file, never from its name."""
    assert "llama" in ARCHITECTURES
    names = set(ARCHITECTURES)
    if name_of(path).startswith("tokenizer/"):
        names -= KINDS_OF_TOKENIZER
    if name_of(path) == "llamacpp/stand_in.py":
        names -= {"llama"}  # it writes a file, which must be of some architecture
    found = [f"line {node.lineno}: {node.value!r}" for node in strings(path) if node.value in names]
    if name_of(path) == "arch/architectures.py":
        assert len(found) >= len(ARCHITECTURES)  # so that this test can see them
    else:
        assert found == []


def test_public_names_are_those_that_have_a_home():
    homes = gguflora._HOMES
    assert sorted(gguflora.__all__) == sorted(homes) == sorted(set(homes))
    assert list(homes.values()) == sorted(homes.values())
    for name, home in homes.items():
        value = getattr(gguflora, name)
        assert value is getattr(importlib.import_module(f"gguflora.{home}"), name)
        assert value.__doc__
    assert dir(gguflora) == sorted(gguflora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        gguflora.Trainer  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    """The imports under TYPE_CHECKING are for them; nothing else keeps the two lists together."""
    [checking] = [node for node in tree_of(PACKAGE / "__init__.py").body if isinstance(node, ast.If)]
    seen = {
        alias.name: (node.module or "").removeprefix("gguflora.")
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == gguflora._HOMES


def test_the_options_are_the_frozen_ones():
    commands = [name for name in app if not name.startswith("-") and name != "data"]
    commands += [f"data {name}" for name in app["data"] if not name.startswith("-")]
    assert sorted(commands) == sorted(OPTIONS)
    for name, options in OPTIONS.items():
        command = app
        for word in name.split():
            command = command[word]
        arguments = command.assemble_argument_collection(default_parameter=app.default_parameter)
        found = [option for argument in arguments if argument.show for option in argument.names if option != "*"]
        assert found == options, name


WRITERS = {"write_text", "touch", "NamedTemporaryFile", "mkstemp", "save_file", "savez", "copyfile"}
WRITING = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"}


def writes(path: Path) -> list[int]:
    """Lines that open a file for writing, by Python's or the system's open, or by a function that does."""
    return sorted({call.lineno for name, call in calls(path) if _writes(name, call)})


def _writes(name: str, call: ast.Call) -> bool:
    method = isinstance(call.func, ast.Attribute)
    if name == "write_bytes":
        return method  # Path's; ours is a plain function, and the door itself
    if name != "open":
        return name in WRITERS
    if WRITING & {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}:
        return True
    given = call.args[:1] if method else call.args[1:2]
    given += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = [node.value for node in given if isinstance(node, ast.Constant)]
    return any(isinstance(mode, str) and len(mode) < 4 and set(mode) & set("wax+") for mode in modes)


def test_files_are_written_through_one_door():
    found = {name_of(path): len(writes(path)) for path in FILES if writes(path)}
    assert found.pop("storage.py") >= 1
    assert found == OTHER_DOORS


@pytest.mark.parametrize(
    "code",
    [
        'open("path", "w")',
        'open("a", mode="ab")',
        'path.open("r+")',
        'path.write_text("x")',
        'path.write_bytes(b"x")',
        'os.open("a", os.O_WRONLY)',
        'tempfile.NamedTemporaryFile("w")',
    ],
)
def test_the_door_that_is_watched_can_be_seen(tmp_path: Path, code: str):
    path = tmp_path / "some.py"
    path.write_text(code)
    assert writes(path) == [1]
    path.write_text('open("a")\npath.open("rb")\nwrite_bytes(path, b"x")\nos.open("path", os.O_RDONLY)\n')
    tree_of.cache_clear()
    assert writes(path) == []
