"""A run refuses before it writes, checks what it wrote unless it is asked to stop, and serves the best it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TrainingConfig
from gguflora.data import Example, load_jsonl
from gguflora.errors import FileError, GgufloraError
from gguflora.events import Event, Finished, Planned, StepDone, Verified, Warned
from gguflora.run.training import Outcome, Request, run
from gguflora.train import Checkpoints, load_newest_state
from tests.runs import metrics, write_dataset
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    folder = tmp_path_factory.mktemp("given")
    return tiny_llama(folder / "tiny.gguf"), load_jsonl(write_dataset(folder / "data.jsonl"))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


def request(given: tuple[Path, list[Example]], folder: Path | None, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "model": given[0],
        "examples": given[1],
        "validation": None,
        "lora": LoraConfig(rank=4),
        "data": DataConfig(),
        "training": TrainingConfig(learning_rate=1e-2, epochs=2, threads=1),
        "output_dir": folder,
    }
    return Request(**values | changes)


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_weights_that_can_not_be_loaded_leave_no_folder(
    given: tuple[Path, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise FileError("a tensor holds values that are not finite.")

    monkeypatch.setattr("gguflora.run.training.load_decoder", broken)
    with pytest.raises(FileError):
        list(run(request(given, tmp_path / "run"), Outcome()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "served"), [(None, "final_adapter.gguf"), (0.2, "best_adapter_epoch_")])
def test_the_adapter_to_serve_is_the_validated_best_or_the_last(
    given: tuple[Path, list[Example]], tmp_path: Path, share: float | None, served: str
):
    events = list(run(request(given, tmp_path / "run", data=DataConfig(validation_split=share)), Outcome()))
    [finished] = of(Finished, events)
    assert events[-1] is finished
    assert Path(finished.adapter).name.startswith(served)
    assert Path(finished.adapter).exists()
    assert Path(finished.best_adapter).exists()
    [planned] = of(Planned, events)
    words = "lowest validation loss" if share else "lowest training loss of an epoch (nothing to validate on)"
    assert planned.choices["best adapter"] == f"the one of the {words}"


def test_the_check_is_made_on_validation_examples_else_on_trained_ones(
    given: tuple[Path, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checked: list[int] = []

    def verify(_base: object, adapter: Path, encoded: Any, *, packed: bool) -> Verified:
        checked.append(len(encoded))
        assert adapter.exists()
        assert not packed
        return Verified(1, 1.0, 1.0, 1.0, 1.0, True, 0.1, True)

    monkeypatch.setattr("gguflora.llamacpp.available", lambda: True)
    monkeypatch.setattr("gguflora.run.training.verify", verify)
    monkeypatch.setattr("gguflora.run.training.answers", lambda *_: [])
    for number, share in enumerate((None, 0.2)):
        data = DataConfig(validation_split=share)
        events = list(run(request(given, tmp_path / str(number), data=data), Outcome()))
        assert isinstance(events[-2], Verified)
    assert checked == [10, 2]


def test_a_check_that_would_take_more_than_the_memory_asked_for_is_left_out_and_it_is_said(
    given: tuple[Path, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its own reckoning is held to what the check takes in test_check_memory.py."""
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: True)
    monkeypatch.setattr("gguflora.run.training.verify", lambda *_, **__: pytest.fail("it was made"))
    monkeypatch.setattr("gguflora.run.check_memory.check_bytes", lambda *_, **__: 3 * 10**9)
    compute = ComputeConfig(memory="2GB")
    [warned] = of(Warned, list(run(request(given, tmp_path / "run", compute=compute), Outcome())))
    words = r"the check in llama.cpp could not be made: it takes about (\d+) MB, and 2GB is the limit; .* missing\."
    said = re.fullmatch(words, warned.message)
    assert said
    assert int(said[1]) > 3000  # what this process holds comes to it


def test_a_check_that_fails_is_a_warning_and_the_adapter_stays(
    given: tuple[Path, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise GgufloraError("llama.cpp said no.")

    monkeypatch.setattr("gguflora.llamacpp.available", lambda: True)
    monkeypatch.setattr("gguflora.run.training.verify", refuse)
    events = list(run(request(given, tmp_path / "run"), Outcome()))
    assert [event.message for event in of(Warned, events)] == [
        "the check in llama.cpp could not be made: llama.cpp said no."
    ]
    assert Path(of(Finished, events)[0].adapter).exists()


def test_a_signal_after_training_leaves_the_check_out(
    given: tuple[Path, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The adapter is written: whoever presses Ctrl-C then does not want to wait for a minute more."""
    done: list[Event] = []
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: True)
    monkeypatch.setattr("gguflora.run.training.verify", lambda *_, **__: pytest.fail("it was made"))

    def stop() -> str | None:
        return "SIGINT" if len(of(StepDone, done)) == 6 else None

    for event in run(request(given, tmp_path / "run", stop=stop), Outcome()):
        done.append(event)
    assert [event.message for event in of(Warned, done)] == ["not verified in llama.cpp: stopped by SIGINT."]
    assert of(Finished, done)[0].stopped_by is None


def test_the_metrics_have_every_event_in_order(given: tuple[Path, list[Example]], tmp_path: Path):
    events = list(run(request(given, tmp_path / "run"), Outcome()))
    kinds = ["".join("_" + c.lower() if c.isupper() else c for c in type(event).__name__)[1:] for event in events]
    assert [event["event"] for event in metrics(tmp_path / "run")] == kinds


def test_a_saved_state_of_other_tensors_is_refused(given: tuple[Path, list[Example]], tmp_path: Path):
    """Should another version of gguflora choose other tensors for the same words."""
    folder = tmp_path / "run"
    list(run(request(given, folder), Outcome()))
    state = load_newest_state(folder).state
    assert state is not None
    del state.pairs["blk.0.attn_q.weight"]
    outcome = Outcome()
    list(run(request(given, None), outcome))
    assert outcome.base
    Checkpoints(folder, "llama", 32.0, outcome.base.identity).save_state(state)
    with pytest.raises(FileError, match=r"its saved state differs in blk\.0\.attn_q\.weight\.lora_a"):
        list(run(request(given, folder, resume=True), Outcome()))
