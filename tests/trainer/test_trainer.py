"""LoraTrainer is the same run for Python: it trains, tells everything, and writes only where it was asked to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gguflora import DataConfig, Example, LoraConfig, LoraTrainer, TrainingConfig, load_jsonl
from gguflora.errors import FolderInUse, GgufloraError, UsageError
from gguflora.events import Evaluated, Event, Finished, StepDone
from gguflora.gguf import check_fits, identity_of, open_gguf, read_adapter
from gguflora.llamacpp import LlamaModel
from tests.runs import tree, write_dataset
from tests.tiny import tiny_llama

LORA = LoraConfig(rank=4, alpha=10.0)
TRAINING = TrainingConfig(learning_rate=1e-2, epochs=2, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return load_jsonl(write_dataset(tmp_path_factory.mktemp("data") / "data.jsonl"))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


class Writes:
    """Every file that this process opens for writing, or makes, while it is on (sys.addaudithook, PEP 578)."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, name: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        written = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if written or name in ("os.mkdir", "os.rename"):
            self.seen.append(f"{name} {arguments[0]}")


WRITES = Writes()


@pytest.fixture
def writes() -> Iterator[list[str]]:
    WRITES.seen, WRITES.on = [], True
    yield WRITES.seen
    WRITES.on = False


def nll(model: Path, adapter: Path | None) -> float:
    """llama.cpp's loss on one of the examples."""
    with LlamaModel(model, exact=True, threads=1) as llama:
        if adapter:
            llama.set_lora_adapter(llama.load_lora_adapter(adapter))
        prompt, answer = llama.tokenize("say 1"), [*llama.tokenize("it is x and x 1"), 2]
        return float(llama.nll(prompt + answer, [-100] * len(prompt) + answer).mean())


def test_it_trains_and_llamacpp_loads_what_it_saves(model: Path, data: list[Example], tmp_path: Path):
    trainer = LoraTrainer(model, LORA, TRAINING)
    events: list[Event] = []
    finished = trainer.train(data, on_event=events.append)
    assert events[-1] is finished
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [type(event).__name__ for event in events[:5]] == [
        "ModelLoaded",
        "DataReady",
        "FirstExample",
        "MemoryPlanned",
        "Planned",
    ]
    assert finished.final_loss is not None
    assert finished.adapter is None
    path = tmp_path / "adapter.gguf"
    trainer.save_adapter(path)
    adapter, base = read_adapter(path), open_gguf(model)
    check_fits(path, adapter, base, identity_of(base))
    assert (adapter.alpha, adapter.base) == (10.0, identity_of(base))
    assert {pair.rank for pair in adapter.pairs.values()} == {4}
    assert nll(model, path) < nll(model, None) - 1
    assert all(np.abs(pair.lora_b).max() > 0 for pair in adapter.pairs.values())


def test_without_an_output_folder_nothing_is_written_anywhere(
    model: Path, data: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: list[str]
):
    monkeypatch.chdir(tmp_path)
    before = tree(model.parent)
    trainer = LoraTrainer(str(model), LORA, TRAINING)
    trainer.train(data, validation=data[:3])
    assert writes == []
    assert list(tmp_path.iterdir()) == []
    assert tree(model.parent) == before
    trainer.save_adapter("adapter.gguf")  # the control: this is seen
    assert any("adapter.gguf" in written for written in writes)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.gguf"]


def test_with_an_output_folder_it_saves_what_the_command_saves(model: Path, data: list[Example], tmp_path: Path):
    folder = tmp_path / "run"
    trainer = LoraTrainer(model, LORA, TRAINING, output_dir=folder)
    finished = trainer.train(data, validation=data[:2])
    assert finished.adapter == str(folder / f"best_adapter_epoch_{finished.best_epoch}.gguf")
    trainer.save_adapter(tmp_path / "saved.gguf")
    assert (tmp_path / "saved.gguf").read_bytes() == (folder / "final_adapter.gguf").read_bytes()
    again = LoraTrainer(model, LORA, TRAINING, output_dir=folder)
    with pytest.raises(UsageError, match="holds a finished run"):
        again.train(data, validation=data[:2])
    events: list[Event] = []
    again.train(data, validation=data[:2], resume=True, on_event=events.append)
    assert not [event for event in events if isinstance(event, StepDone)]
    again.save_adapter(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "saved.gguf").read_bytes()


@pytest.mark.parametrize("failed", [False, True])
def test_save_before_train_is_a_clear_error(model: Path, tmp_path: Path, failed: bool):
    trainer = LoraTrainer(model, LORA, TRAINING)
    if failed:
        with pytest.raises(GgufloraError):
            trainer.train([])
    with pytest.raises(UsageError, match="There is no adapter to save: call train first"):
        trainer.save_adapter(tmp_path / "adapter.gguf")
    assert list(tmp_path.iterdir()) == []


def test_training_twice_starts_anew(model: Path, data: list[Example]):
    trainer = LoraTrainer(model, LORA, TRAINING)
    losses = [trainer.train(data).final_loss for _ in range(2)]
    assert losses[0] == losses[1]


def test_the_data_config_decides_the_split(model: Path, data: list[Example]):
    events: list[Event] = []
    trainer = LoraTrainer(model, LORA, TRAINING, data_config=DataConfig(validation_split=0.3))
    trainer.train(data, on_event=events.append)
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 2, 4]


def test_an_error_in_on_event_comes_out_and_frees_the_folder(model: Path, data: list[Example], tmp_path: Path):
    trainer = LoraTrainer(model, LORA, TRAINING, output_dir=tmp_path / "run")

    def impatient(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as kept:
        trainer.train(data, on_event=impatient)
    try:
        finished = LoraTrainer(model, LORA, TRAINING, output_dir=tmp_path / "run").train(data, resume=True)
    except FolderInUse:
        pytest.fail(f"the folder is held by the run that ended in {kept.value!r}")
    whole = LoraTrainer(model, LORA, TRAINING).train(data)
    assert isinstance(finished, Finished)
    assert finished.final_loss == whole.final_loss


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([], "no example to train"),
        ([Example.completion("a", "")], "No example is left to train"),
        ([Example.completion("a", "b", weight=0)], "No example is left to train"),
    ],
)
def test_nothing_to_train_is_told(model: Path, examples: list[Example], words: str):
    with pytest.raises(GgufloraError, match=words):
        LoraTrainer(model, LORA, TRAINING).train(examples)
