"""The plan of memory is what training then takes: measured in processes of their own, on real models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import json, sys
from pathlib import Path
from gguflora import ComputeConfig, DataConfig, Example, LoraConfig, TrainingConfig
from gguflora.events import MemoryPlanned
from gguflora.run.training import Outcome, Request, run

model, data, compute, rank = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
chats = [json.loads(line)["messages"] for line in data.read_text().splitlines()[:96]]
# Gemma's file has no chat template.
examples = [Example.completion(question["content"], answer["content"]) for question, answer in chats]
request = Request(
    model=model, examples=examples, validation=None, lora=LoraConfig(rank=rank),
    data=DataConfig(validation_split=0.0), training=TrainingConfig(batch_size=8, max_steps=6),
    compute=ComputeConfig(**compute), output_dir=None,
)
planned = None
for event in run(request, Outcome()):
    if isinstance(event, MemoryPlanned):
        planned = event.total
peak = int(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
print(json.dumps({"planned": planned, "measured": peak * 1024}))
"""

SETTINGS = {
    "as it is": ({}, 16),
    "rows of 1,024": ({"micro_batch_tokens": 1024}, 16),
    "rows of 512, recomputed, packed": ({"micro_batch_tokens": 512, "recompute": "on", "weights": "packed"}, 16),
    "packed": ({"weights": "packed"}, 16),
    "recomputed": ({"recompute": "on"}, 16),
    "rank 64": ({}, 64),
    "float32": ({"dtype": "float32"}, 16),
    "one example at a time": ({"packing": "off"}, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize(("compute", "rank"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_the_peak_is_within_15_percent_of_the_plan(
    model: str, compute: dict[str, object], rank: int, request: pytest.FixtureRequest
) -> None:
    data = Path(__file__).parents[2] / "benchmarks" / "data" / "gsm8k_512.jsonl"
    path: Path = request.getfixturevalue(model)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(data), json.dumps(compute), str(rank)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    result = json.loads(done.stdout)
    print({name: f"{size / 1e6:.0f} MB" for name, size in result.items()})
    assert abs(result["measured"] / result["planned"] - 1) <= 0.15
