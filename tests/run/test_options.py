"""Options that change how a run computes: what they must not change, and what they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.cli import main
from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TrainingConfig
from gguflora.data import Example, load_jsonl
from gguflora.errors import FileError, UsageError
from gguflora.events import Event, FirstBatch, Planned, StepDone
from gguflora.gguf import read_adapter
from gguflora.run.training import Outcome, Request, run
from tests.runs import write_dataset
from tests.tiny import tiny_llama

Given = tuple[Path, list[Example]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    return tiny_llama(folder / "tiny.gguf"), load_jsonl(write_dataset(folder / "data.jsonl", 6))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


def trained(given: Given, folder: Path | None, lora: LoraConfig | None = None, **changes: Any) -> list[Event]:
    compute = ComputeConfig(**{"dtype": "float32"} | changes.pop("compute", {}))
    training = TrainingConfig(learning_rate=1e-2, epochs=2, threads=1)
    request = Request(
        given[0],
        given[1],
        None,
        lora or LoraConfig(rank=4, alpha=8.0),
        DataConfig(),
        training,
        folder,
        compute,
        **changes,
    )
    return list(run(request, Outcome()))


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepDone)]


@pytest.mark.parametrize(
    "compute",
    [
        {"packing": "off"},
        {"micro_batch_tokens": 100},
        {"recompute": "on"},
        {"weights": "packed"},
        {"kernels": "reference"},
    ],
    ids=lambda compute: next(iter(compute)),
)
def test_how_it_is_computed_does_not_change_what_is_learned(given: Given, compute: dict[str, Any]) -> None:
    """float32 rounds sums in another order: 1e-5 is some hundred of its units."""
    plain, other = losses(trained(given, None)), losses(trained(given, None, compute=compute))
    assert len(plain) == 4
    np.testing.assert_allclose(other, plain, rtol=1e-5)


def test_bfloat16_learns_nearly_the_same_and_is_named_in_the_plan(given: Given) -> None:
    plain = losses(trained(given, None))
    events = trained(given, None, compute={"dtype": "bfloat16"})
    [plan] = [event for event in events if isinstance(event, Planned)]
    assert plan.choices["compute"] == "bfloat16 (as asked)"
    assert losses(events) != plain
    np.testing.assert_allclose(losses(events), plain, rtol=0.05)  # bfloat16 has 8 bits: 0.4 % a rounding


def test_dropout_changes_training_repeats_itself_and_does_not_care_for_packing(given: Given) -> None:
    dropped = LoraConfig(rank=4, alpha=8.0, dropout=0.3)
    first, again = losses(trained(given, None, dropped)), losses(trained(given, None, dropped))
    assert first == again
    assert first != losses(trained(given, None))
    np.testing.assert_allclose(losses(trained(given, None, dropped, compute={"packing": "off"})), first, rtol=1e-5)


def test_rank_stabilised_scaling_trains_and_saves_the_larger_alpha(given: Given, tmp_path: Path) -> None:
    stabilised = trained(given, tmp_path / "a", LoraConfig(rank=4, alpha=8.0, rslora=True))
    folded = trained(given, tmp_path / "b", LoraConfig(rank=4, alpha=16.0))
    assert losses(stabilised) == losses(folded)
    paths = [tmp_path / name / "final_adapter.gguf" for name in "ab"]
    assert read_adapter(paths[0]).alpha == 16.0
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_initial_adapter_is_where_training_goes_on(given: Given, tmp_path: Path) -> None:
    first = trained(given, tmp_path / "first", LoraConfig(rank=3, alpha=6.0, target=("attn_q", "ffn_down")))
    adapter = tmp_path / "first" / "final_adapter.gguf"
    events = trained(given, tmp_path / "second", init_adapter=adapter)
    [plan] = [event for event in events if isinstance(event, Planned)]
    assert (plan.rank, plan.alpha, set(plan.pairs)) == (3, 6.0, {"attn_q", "ffn_down"})
    assert losses(events)[0] < losses(first)[0]
    second = read_adapter(tmp_path / "second" / "final_adapter.gguf")
    assert second.pairs.keys() == read_adapter(adapter).pairs.keys()
    dry = trained(given, None, init_adapter=adapter, dry_run=True)
    [batch] = [event for event in dry if isinstance(event, FirstBatch)]
    assert batch.loss == pytest.approx(losses(events)[0], rel=1e-5)  # the same state, the same first batch


def test_an_initial_adapter_of_another_base_is_refused(given: Given, tmp_path: Path) -> None:
    trained(given, tmp_path / "run")
    other = tiny_llama(tmp_path / "other.gguf", seed=1), given[1]
    with pytest.raises(FileError, match="another base"):
        trained(other, None, init_adapter=tmp_path / "run" / "final_adapter.gguf")
    with pytest.raises(UsageError, match="exclude each other"):
        trained(
            given,
            None,
            LoraConfig(rank=4, rslora=True),
            init_adapter=tmp_path / "run" / "final_adapter.gguf",
        )


def test_a_dry_run_shows_plan_and_first_batch_and_writes_nothing(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data.jsonl", 6)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(given[0]), str(data), "--output-dir", str(tmp_path / "run"), "--rank", "4", "--dry-run"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Plan" in out
    assert "first batch: 4 examples" in out
    assert "step 1/" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_resumed_run_keeps_the_compute_dtype_that_it_began_with(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguflora.run import choices

    trained(given, tmp_path / "run", compute={"dtype": "bfloat16"})
    (tmp_path / "run" / "final_adapter.gguf").unlink()
    newest = max((tmp_path / "run" / "state").glob("*.json"))
    newest.unlink()
    monkeypatch.setattr(choices, "choose_dtype", lambda: pytest.fail("the run's own dtype was not looked at"))
    events = trained(given, tmp_path / "run", compute={"dtype": "auto"}, resume=True)
    [plan] = [event for event in events if isinstance(event, Planned)]
    assert plan.choices["compute"] == "bfloat16 (as the run began)"
