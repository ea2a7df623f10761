"""Every command in the README is run, with the README's own data, on a small model named as the README names it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gguflora.llamacpp import LlamaServer
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SAID = {
    "plan": "it fits",
    "inspect": "this version can train it",
    "render": "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "tokenize": " tokens",
    "doctor": "Nothing is in the way.",
}
"""Part of what a command prints, where that is its use."""
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "passive"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: model.gguf, data.jsonl as the README shows it, messages.json with its first question."""
    folder = tmp_path_factory.mktemp("reader")
    tiny_llama(folder / "model.gguf")
    (folder / "data.jsonl").write_text(blocks("json")[0])
    conversation = json.loads(blocks("json")[0].splitlines()[0])
    (folder / "messages.json").write_text(json.dumps({"messages": conversation["messages"][:1]}))
    return folder


def run(command: list[str], folder: Path, timeout: int = 120) -> str:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readme_has_the_commands_that_are_run_here_and_no_others() -> None:
    known = ("make demo", "make test", "pip install .", "gguflora ", "llama-server ")
    assert commands()
    assert [line for line in commands() if not line.startswith(known)] == []


def test_the_commands_for_ones_own_model_work_in_the_order_they_stand(folder: Path) -> None:
    done = []
    for line in commands():
        words = shlex.split(line)
        if words[0] == "gguflora":
            if "--resume" in words:
                kill_the_end_of(folder / "my-adapter")
            said = run([sys.executable, "-m", *words], folder)
            assert SAID.get(words[1], "") in said
            done.append(words[1])
        elif words[0] == "llama-server":
            options = dict(zip(words[1::2], words[2::2], strict=True))
            with LlamaServer(folder / options["-m"], folder / options["--lora"], threads=1) as server:
                assert server.tokenize("4")
            done.append(words[0])
    assert done == [
        "train",
        "llama-server",
        "generate",
        "eval",
        "train",
        "plan",
        "data",
        "data",
        "inspect",
        "render",
        "tokenize",
        "doctor",
    ]
    assert (folder / "my-adapter" / "final_adapter.gguf").exists()


def kill_the_end_of(run_folder: Path) -> None:
    """Leave the folder as a kill during the last epoch would: one finished state less, no final adapter."""
    states = sorted((run_folder / "state").glob("step-*.json"))
    states[-1].unlink()
    (run_folder / "final_adapter.gguf").unlink()


def test_the_python_example_works(folder: Path) -> None:
    run([sys.executable, "-c", blocks("python")[0]], folder)
    assert (folder / "adapter.gguf").exists()


def test_pip_install_makes_a_package_that_runs(tmp_path: Path) -> None:
    """Without its dependencies, which this environment has: what is tested is the package itself."""
    copy = tmp_path / "checkout"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "demo-output", ".*_cache", ".hypothesis")
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", "installed", "."]
    run(pip, copy, timeout=300)
    shutil.rmtree(copy / "gguflora")
    where = "import gguflora.cli; print(gguflora.__file__)"
    environment = ENVIRONMENT | {"PYTHONPATH": str(copy / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", where], cwd=copy, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(copy / "installed")


def test_make_demo_teaches_the_task_and_proves_it() -> None:
    """The demo's promise: over 90 % exact on seen phrasings after training, and far from it before."""
    out = run(["make", "demo"], ROOT, timeout=1500)
    scores = {
        label: [int(n) for n in re.findall(r"(\d+) of (\d+)", line)[0][:1] + re.findall(r"(\d+) of (\d+)", line)[1]]
        for line in out.splitlines()
        for label in ("known phrasings", "new phrasings")
        if label in line
    }
    before, after, total = scores["known phrasings"]
    assert total >= 60
    assert after / total > 0.9
    assert before / total < 0.5
    assert scores["new phrasings"][1] > scores["new phrasings"][0]
    print(out[-1500:])
