"""A million records are trained on in little memory: read as a stream, and kept as tokens in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
RECORDS = 1_000_000
HELD = RECORDS // 10  # of them the control holds
BYTES_EACH = (
    200  # of the trained million, in memory: 33 of the catalogue, 51 to find the equal ones in it, pages of files
)

MEASURED = """
import sys
from pathlib import Path
from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TrainingConfig
from gguflora.data import open_examples, load_examples, prepare
from gguflora.events import DataReady, StepDone
from gguflora.run.opening import open_base
from gguflora.run.training import Outcome, Request, run

def memory(line):
    return next(int(text.split()[1]) * 1024 for text in open("/proc/self/status") if text.startswith(line))

def told(events):
    steps = 0
    for event in events:
        if isinstance(event, DataReady):
            print(event.train_examples + event.validation_examples, memory("VmHWM") - before, end=" ")
        steps += isinstance(event, StepDone)
    print(steps)

model, data, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
base = open_base(model)
config, compute = TrainingConfig(max_steps=2, threads=1), ComputeConfig(dtype="float32", kernels="torch")
few = load_examples(sys.argv[4])  # what any training takes is not counted
list(run(Request(model, few, None, LoraConfig(), DataConfig(), config, None, compute), Outcome()))
before = memory("VmHWM")
if how == "held":
    examples = load_examples(data)
    prepared = prepare(examples, base.tokenizer, base.template, 2048)
    print(len(prepared.encoded), memory("VmHWM") - before, 0)
else:
    examples = open_examples(data)
    uncached = DataConfig(token_cache="off")
    told(run(Request(model, examples, None, LoraConfig(), uncached, config, None, compute), Outcome()))
"""


def write_records(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": f"{number} plus 1 is", "completion": f" {number + 1}"}) + "\n")
    return path


def measured(model: Path, data: Path, how: str, few: Path) -> tuple[int, int, int]:
    """Examples, how much the peak of the memory rose (in bytes), steps."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(model), str(data), how, str(few)],
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    examples, memory, steps = map(int, done.stdout.split())
    return examples, memory, steps


@pytest.mark.slow
def test_a_million_records_take_little_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, few = tiny_llama(tmp_path / "tiny.gguf"), write_records(tmp_path / "few.jsonl", 10)
    examples, streamed, steps = measured(model, write_records(tmp_path / "all.jsonl", RECORDS), "streamed", few)
    assert (examples, steps) == (RECORDS, 2)
    examples, held, _ = measured(model, write_records(tmp_path / "tenth.jsonl", HELD), "held", few)
    assert examples == HELD
    with capsys.disabled():
        print(f"\npeak memory rose by {streamed / 2**20:.0f} MiB for {RECORDS} records trained as a stream")
        print(f"and by {held / 2**20:.0f} MiB for {HELD} that are held")
    assert streamed < BYTES_EACH * RECORDS < held / HELD * RECORDS
