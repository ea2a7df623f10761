"""The plan of memory is what training then takes: measured in processes of their own, on real models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguflora.arch import model_spec
from gguflora.config import ComputeConfig, TrainingConfig
from gguflora.data import Encoded, Prepared
from gguflora.gguf import open_gguf
from gguflora.run.dataset import Dataset
from gguflora.run.memory_plan import Load, MemoryPlan, Setting, load_of, memory_plan
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
TRAIN = """
import json, sys
from pathlib import Path
from gguflora import ComputeConfig, DataConfig, Example, LoraConfig, TrainingConfig
from gguflora.events import MemoryPlanned
from gguflora.run.training import Outcome, Request, run

model, data, asked = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
rank, share = asked.pop("rank", 16), asked.pop("validation", 0.0)
chats = [json.loads(line)["messages"] for line in data.read_text().splitlines()[:96]]
# Gemma's file has no chat template.
examples = [Example.completion(question["content"], answer["content"]) for question, answer in chats]
request = Request(
    model=model, examples=examples, validation=None, lora=LoraConfig(rank=rank),
    data=DataConfig(validation_split=share), training=TrainingConfig(batch_tokens=2048, max_steps=3),
    compute=ComputeConfig(**asked), output_dir=None,
)
for event in run(request, Outcome()):
    if isinstance(event, MemoryPlanned):
        blocks = Path("/proc/self/smaps").read_text().split("VmFlags")
        pages = [line for block in blocks if str(model) in block for line in block.splitlines()]
        model_pages = sum(int(line.split()[1]) for line in pages if line.startswith("Rss:"))
        told = {"planned": event.total, "mapped": event.mapped, "model_pages": model_pages * 1024}
        print(json.dumps(told), flush=True)
"""

SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rows of 1,024": {"micro_batch_tokens": 1024},
    "rows of 512": {"micro_batch_tokens": 512},
    "rows of 512, recomputed, packed": {"micro_batch_tokens": 512, "recompute": "on", "weights": "packed"},
    "packed": {"weights": "packed"},
    "recomputed": {"recompute": "on"},
    "rank 64": {"rank": 64, "micro_batch_tokens": 1024},
    "float32": {"dtype": "float32", "micro_batch_tokens": 1024},
    "float32, recomputed, packed": {
        "dtype": "float32",
        "micro_batch_tokens": 1024,
        "recompute": "on",
        "weights": "packed",
    },
    "torch's operations": {"kernels": "torch", "micro_batch_tokens": 1024},
    "one example at a time": {"packing": "off", "rank": 8},
    "with validation": {"validation": 0.2, "micro_batch_tokens": 512},
}
"""In bfloat16 where nothing else is said, on a processor that has it."""


def status(pid: int) -> dict[str, int]:
    """A process's memory in bytes by Linux's names; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Rss", "VmHWM"))}


def measured(model: Path, setting: dict[str, Any]) -> dict[str, int]:
    """What was planned, and the peak: of private memory, with the pages of libraries, and without those of the model.

    The kernel keeps no peak of the former, so it is read every few milliseconds.
    """
    data = ROOT / "benchmarks" / "data" / "gsm8k_512.jsonl"
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", TRAIN, str(model), str(data), json.dumps(setting)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told: dict[str, int] = json.loads(process.stdout.readline())
        libraries = status(process.pid)["RssFile"] - told["model_pages"]
        private = resident = 0
        while process.poll() is None:
            now = status(process.pid)
            private, resident = max(private, now.get("RssAnon", 0)), max(resident, now.get("VmHWM", 0))
            time.sleep(0.004)
    assert process.returncode == 0
    return told | {"measured": private + libraries, "resident": resident}


@pytest.fixture(scope="module", autouse=True)
def compiled_before() -> None:
    """A first run on a machine compiles, which takes memory that no later one does."""
    subprocess.run(
        [sys.executable, "-c", "import gguflora.kernels.operations as o; o.compiled()"], cwd=ROOT, check=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_the_peak_is_within_15_percent_of_the_plan(
    model: str, setting: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    found = measured(request.getfixturevalue(model), dict(setting))
    print({name: f"{size / 1e6:.0f} MB" for name, size in found.items()})
    assert abs(found["measured"] / found["planned"] - 1) <= 0.15
    # What top shows: never more than with all of the file's pages that are read through its map.
    assert found["resident"] <= 1.15 * found["planned"] + max(found["mapped"], found["model_pages"])


# --- the formulas, on a model small enough to count by hand ---

BFLOAT16 = Setting(torch.bfloat16, packed=False, rows=64, recompute=False)
LOAD = Load(ranks={}, step=2**20, longest=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, three layers, width 48, 6 heads on 2 of 10, ffn 88, 300 tokens (tests/tiny.py)."""
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def plan(path: Path, load: Load = LOAD, setting: Setting = BFLOAT16) -> MemoryPlan:
    gguf = open_gguf(path)
    return memory_plan(gguf, model_spec(gguf), load, setting)


def matrices(path: Path) -> list[tuple[int, ...]]:
    return [info.shape for info in open_gguf(path).tensors.values() if len(info.shape) == 2]


def test_resident_weights_are_all_matrices_and_a_tied_output_layer_is_one(tiny: Path) -> None:
    elements = sum(out * columns for out, columns in matrices(tiny))  # the embedding, once, stands for the output
    assert plan(tiny).parts["weights"] == 2 * elements
    assert plan(tiny, setting=replace(BFLOAT16, dtype=torch.float32)).parts["weights"] == 4 * elements


def test_packed_weights_take_a_matrix_at_a_time_and_their_pages_can_be_dropped(tiny: Path) -> None:
    packed, resident = plan(tiny, setting=replace(BFLOAT16, packed=True)), plan(tiny)
    assert packed.parts["weights"] == 0
    assert packed.mapped == 4 * sum(out * columns for out, columns in matrices(tiny))  # F32 in the file
    assert resident.mapped == 4 * 300 * 48  # the embedding
    largest = max(300 * 48, 2 * 88 * 48)  # the output layer, or gate and up as one
    assert packed.parts["scratch"] - resident.parts["scratch"] == 2 * largest


def test_a_pair_has_values_gradients_moments_and_a_copy_in_the_compute_dtype(tiny: Path) -> None:
    pair = plan(tiny, replace(LOAD, ranks={"blk.0.attn_q.weight": 3}))
    [shape] = [info.shape for name, info in open_gguf(tiny).tensors.items() if name == "blk.0.attn_q.weight"]
    numbers = 3 * sum(shape)
    assert pair.parts["adapter"] == (4 + 4 + 2) * numbers
    assert pair.parts["optimiser"] == (4 + 4) * numbers


def test_recomputed_layers_keep_their_input_alone(tiny: Path) -> None:
    """In two layers of three nothing but the residual is left: with it one more is in use while a layer runs again."""
    kept, again = (
        plan(tiny, setting=replace(BFLOAT16, recompute=on)).parts["saved activations"] for on in (False, True)
    )
    residual = 64 * 4 * 48
    layer = (kept - 4 * residual) / 3
    assert again == layer + 5 * residual


def test_what_is_measured_needs_a_layers_buffers_besides(tiny: Path) -> None:
    without = plan(tiny)
    measuring = plan(tiny, replace(LOAD, measured=1000, measured_longest=50))
    layer = (without.parts["saved activations"] - 64 * 4 * 4 * 48) / 3
    assert measuring.parts["saved activations"] - without.parts["saved activations"] == layer
    assert measuring.parts["workspace"] == without.parts["workspace"]
    longer = plan(tiny, replace(LOAD, measured=1000, measured_longest=96))
    assert longer.parts["workspace"] == without.parts["workspace"] * 96 / 64


def test_torchs_operations_need_no_numba_but_wide_copies(tiny: Path) -> None:
    """Of the logits of 64 rows, all in one chunk: the copy in float32 and its exponentials."""
    short = replace(LOAD, longest=32)  # so that scores are few
    found = plan(tiny, short, replace(BFLOAT16, compiled=False, rows=64))
    assert plan(tiny, short).parts["temporaries"] == 0
    assert found.parts["temporaries"] == 2 * 4 * 64 * 300
    assert found.parts["process"] < plan(tiny).parts["process"]


def encoded(*lengths: int) -> Prepared:
    return Prepared([Encoded(np.zeros(n, np.int32), np.zeros(n, np.int32), 1.0, "x") for n in lengths], {})


@pytest.mark.parametrize(
    ("training", "compute", "step"),
    [
        ({"batch_size": 2}, {}, 90),  # the two longest examples could meet in a step
        ({"batch_size": 9}, {}, 110),  # there are no more than four
        ({"batch_tokens": 512}, {}, 512),
        ({"batch_size": 2}, {"packing": "off"}, 1),
    ],
)
def test_a_row_holds_no_more_than_a_step(training: dict[str, int], compute: dict[str, Any], step: int) -> None:
    dataset = Dataset(encoded(40, 10, 50, 10), encoded(30, 60), "given", 6, 0, False, 0)
    load = load_of(dataset, {"a": 4}, TrainingConfig(**training), ComputeConfig(**compute))
    assert load == Load({"a": 4}, step, 50, 90, 60)
