"""Commands that only look start at once, on the largest vocabulary too; training is at its first step soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from examples.notes.demo import HERE, OPTIONS
from tests.runs import UNCHECKED

PROMISED = 1.0  # seconds on a quiet machine
FIRST_STEP = 10.0  # likewise
NOISE = 2  # a busy machine shares caches and cores, which shows in processor time too


def test_tokenize_answers_within_a_second_from_a_cold_start(gemma3_path: Path) -> None:
    """262,144 tokens. Processor time of the whole process, the better of two, so that only what it does counts."""
    taken = []
    for _ in range(2):
        command = [sys.executable, "-m", "gguflora", "tokenize", str(gemma3_path), "Hello world", "--json"]
        answer, seconds = answered(command, {})
        assert json.loads(answer) == [2, 9259, 1902]  # as llama-tokenize gives them
        taken.append(seconds)
    assert min(taken) < NOISE * PROMISED


def test_training_is_at_its_first_step_within_ten_seconds(smollm2_path: Path, tmp_path: Path) -> None:
    """The demo's model and data, nothing cached but the operations. Processor time, with one step and all saved."""
    command = [*UNCHECKED, "train", str(smollm2_path), str(HERE / "train.jsonl"), "--output-dir", str(tmp_path / "out")]
    answer, seconds = answered(
        [*command, *OPTIONS, "--max-steps", "1", "--threads", "1", "--json"],
        {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert [json.loads(line)["event"] for line in answer.splitlines()].count("step_done") == 1
    assert seconds < NOISE * FIRST_STEP


def answered(command: list[str], environment: dict[str, str]) -> tuple[bytes, float]:
    """What a command writes, and the processor time that it and the processes it waited for took, in seconds."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment) as process:
        assert process.stdout
        answer = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return answer, usage.ru_utime + usage.ru_stime
