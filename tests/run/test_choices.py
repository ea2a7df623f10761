"""What is chosen follows from the machine's class or --memory, is told with its reason, and stays for the whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gguflora.arch import model_spec
from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TrainingConfig
from gguflora.data import Example, load_jsonl
from gguflora.errors import UsageError
from gguflora.events import Event, MemoryPlanned, Planned
from gguflora.gguf import open_gguf
from gguflora.run import choices as choices_module
from gguflora.run.choices import Choices, choose
from gguflora.run.machine import Ceiling
from gguflora.run.memory_plan import Load, MemoryPlan
from gguflora.run.training import Outcome, Request, run
from tests.runs import write_dataset
from tests.tiny import tiny_llama

Given = tuple[Path, list[Example]]
GB = 10**9
LOAD = Load(ranks={}, step=2**20, longest=300)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    return tiny_llama(folder / "tiny.gguf"), load_jsonl(write_dataset(folder / "data.jsonl", 6))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


def machine(monkeypatch: pytest.MonkeyPatch, size: int, whose: str = "the cgroup") -> None:
    monkeypatch.setattr(choices_module, "memory_class", lambda: Ceiling(size, whose))


def made(given: Given, old: dict[str, Any] | None = None, **compute: Any) -> Choices:
    gguf = open_gguf(given[0])
    return choose(ComputeConfig(**{"dtype": "float32"} | compute), gguf, model_spec(gguf), LOAD, (1, "as asked"), old)


def peak(given: Given, monkeypatch: pytest.MonkeyPatch, **compute: Any) -> int:
    machine(monkeypatch, 2**40)
    plan = made(given, **compute).plan
    assert plan
    return plan.peak


def test_with_room_nothing_is_saved(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2**34, "the machine")
    found = made(given)
    assert (found.setting.rows, found.setting.packed, found.setting.recompute) == (2048, False, False)
    assert found.reasons["memory"].endswith("within 16 GiB, the power of two within what the machine allows")
    assert found.reasons["micro-batch"] == "packed rows of at most 2048 tokens (the default)"


def test_a_limit_below_the_plan_of_the_default_gets_the_smaller_setting_at_once(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, full = (peak(given, monkeypatch, weights=weights) for weights in ("packed", "resident"))
    assert packed < full
    machine(monkeypatch, full - 1)
    found = made(given)
    assert (found.setting.rows, found.setting.packed, found.setting.recompute) == (2048, True, False)
    assert found.plan
    assert found.plan.peak == packed
    assert "what the cgroup allows; the fastest setting would take" in found.reasons["memory"]
    machine(monkeypatch, full)
    assert not made(given).setting.packed


def test_a_limit_below_the_plan_of_packed_weights_gets_shorter_rows(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, peak(given, monkeypatch, weights="packed") - 1)
    found = made(given)
    assert (found.setting.rows, found.setting.packed, found.setting.recompute) == (1024, True, False)
    assert found.reasons["micro-batch"] == "packed rows of at most 1024 tokens (to save memory)"


def test_a_limit_below_every_plan_gets_the_smallest_and_says_so(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2**20, "RLIMIT_DATA")
    found = made(given)
    assert (found.setting.rows, found.setting.packed, found.setting.recompute) == (512, True, True)
    assert "more than 0.000976562 GiB, the power of two within what RLIMIT_DATA allows" in found.reasons["memory"]


def test_memory_as_asked_does_not_depend_on_the_machine(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = f"{peak(given, monkeypatch, micro_batch_tokens=1024, weights='packed')}B"
    for size in (2**20, 2**40):
        machine(monkeypatch, size)
        found = made(given, memory=limit)
        assert (found.setting.rows, found.setting.packed, found.setting.recompute) == (1024, True, False)
        assert f"planned, within --memory {limit}" in found.reasons["memory"]


def test_memory_that_no_setting_keeps_to_is_refused(given: Given) -> None:
    with pytest.raises(UsageError, match=r"^--memory 1MB is too little: .* needs \d+ MB .*\.$"):
        made(given, memory="1MB")


def test_weights_of_more_than_a_quarter_of_the_machine_stay_packed(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the plan says: the matrices in float32, a tied output layer among them."""
    monkeypatch.setattr(choices_module, "memory_plan", lambda *_: MemoryPlan({}, 0))
    tensors = open_gguf(given[0]).tensors.values()
    size = sum(info.nbytes for info in tensors if len(info.shape) == 2)  # F32, and the embedding is the output layer
    machine(monkeypatch, 4 * size)
    assert not made(given).setting.packed
    machine(monkeypatch, 4 * size - 1)
    assert made(given).setting.packed


def test_a_resumed_run_keeps_what_was_chosen_where_the_same_is_asked_for(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 2**20)
    first = made(given)
    compute = ComputeConfig(dtype="float32")
    record = json.loads(json.dumps({"environment": {}, "compute": vars(compute), "chosen": first.record}, default=str))
    machine(monkeypatch, 2**40)
    again = made(given, record)
    assert again.setting == first.setting
    assert again.reasons["memory"] == "as the run began"
    assert made(given, record, weights="resident").setting.rows == 2048  # another wish is chosen for anew
    assert made(given, record | {"chosen": {"rows": "many"}}).setting.rows == 2048


def events_of(given: Given, folder: Path, compute: ComputeConfig, **changes: Any) -> list[Event]:
    training = TrainingConfig(learning_rate=1e-2, epochs=2, threads=1)
    request = Request(given[0], given[1], None, LoraConfig(rank=4), DataConfig(), training, folder, compute, **changes)
    return list(run(request, Outcome()))


def test_a_run_stores_what_it_chose_and_goes_on_with_it(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ComputeConfig(dtype="float32", kernels="torch")
    machine(monkeypatch, 2**20)
    whole = events_of(given, tmp_path / "whole", compute)
    [planned] = [event for event in whole if isinstance(event, MemoryPlanned)]
    stops = iter([None, "SIGTERM"])
    events_of(given, tmp_path / "halves", compute, stop=lambda: next(stops, "SIGTERM"))
    record = json.loads((tmp_path / "halves" / "run.json").read_text())
    assert record["chosen"] == {"packed": True, "rows": 2048, "recompute": True}
    machine(monkeypatch, 2**40)
    resumed = events_of(given, tmp_path / "halves", compute, resume=True)
    assert [event.parts for event in resumed if isinstance(event, MemoryPlanned)] == [planned.parts]
    [plan] = [event for event in resumed if isinstance(event, Planned)]
    assert plan.choices["memory"] == "as the run began"
    assert adapter(tmp_path / "halves") == adapter(tmp_path / "whole")


def adapter(folder: Path) -> bytes:
    return (folder / "final_adapter.gguf").read_bytes()


def test_dtypes_have_the_names_of_the_options() -> None:
    assert choices_module.name_of(torch.bfloat16) == "bfloat16"
