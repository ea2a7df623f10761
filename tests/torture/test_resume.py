"""A run that is killed at any moment goes on to the same bytes; what would change the result is refused by name."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gguflora.gguf import identity_of, open_gguf
from gguflora.train import Checkpoints, State, load_newest_state
from tests.runs import command, events, metrics, start, tree, wait_for_step, write_dataset
from tests.tiny import tiny_llama

EPOCHS, STEPS = 15, 45  # 3 steps an epoch
KILLS = 4


@dataclass(frozen=True)
class Given:
    """A model, data and settings; `whole` is the folder of a run on them that nothing interrupted."""

    model: Path
    data: Path
    whole: Path

    def arguments(self, folder: Path, *flags: str, **settings: object) -> list[str]:
        # One thread: the machine of a test is busy.
        standard = {"epochs": EPOCHS, "learning-rate": 1e-2, "save-steps": 2, "validation-split": 0.2, "threads": 1}
        given = standard | {name.replace("_", "-"): value for name, value in settings.items()}
        options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return ["train", str(self.model), str(self.data), "--output-dir", str(folder), "--json", *options, *flags]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    given = Given(tiny_llama(folder / "tiny.gguf"), write_dataset(folder / "data.jsonl", 14), folder / "whole")
    with start(*given.arguments(given.whole)) as process:
        steps = [event["step"] for event in events(process) if event["event"] == "step_done"]
    assert process.returncode == 0
    assert steps == list(range(1, STEPS + 1))
    return given


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


@pytest.fixture(scope="module")
def halfway(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after step 21, in a save or out of one."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    with start(*given.arguments(folder)) as process:
        wait_for_step(process, 21)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "final_adapter.gguf").exists()
    return folder


@pytest.fixture
def killed(halfway: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to go on in."""
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def assert_same_result(given: Given, folder: Path) -> None:
    expected = {name: data for name, data in tree(given.whole).items() if name.endswith(".gguf")}
    assert "final_adapter.gguf" in expected
    assert {name: data for name, data in tree(folder).items() if name.endswith(".gguf")} == expected


def change_newest_state(folder: Path, model: Path, change: Callable[[State], None]) -> None:
    """Rewrite the newest state with `change` made to it, hashes and all."""
    state = load_newest_state(folder).state
    assert state is not None
    change(state)
    shutil.rmtree(folder / "state")
    base = open_gguf(model)
    Checkpoints(folder, base.architecture, 32.0, identity_of(base)).save_state(state)


# --- kill -9 ---


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(given: Given, tmp_path: Path):
    """Each time at a random step, and a random moment after it: within a step, a measurement or a save."""
    seed = random.SystemRandom().randrange(1_000_000)
    rng = random.Random(seed)
    print(f"seed {seed}")
    folder, at = tmp_path / "run", 0
    for kill in range(KILLS):
        at = rng.randint(at + 1, (kill + 1) * STEPS // (KILLS + 1))
        moment = rng.uniform(0, 0.03)  # seconds: two steps or so
        print(f"kill {kill + 1}: {moment * 1000:.1f} ms after step {at}")
        with start(*given.arguments(folder, *["--resume"] * (kill > 0))) as process:
            wait_for_step(process, at)
            time.sleep(moment)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "final_adapter.gguf").exists()
    assert command(*given.arguments(folder, "--resume")) == 0
    assert_same_result(given, folder)
    steps = [event["step"] for event in metrics(folder) if event["event"] == "step_done"]
    assert steps == list(range(1, STEPS + 1)), "each step stands once in the metrics"
    losses = [
        [event["loss"] for event in metrics(run) if event["event"] == "step_done"] for run in (folder, given.whole)
    ]
    assert losses[0] == losses[1]
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob(".*.partial"))


def test_control_without_the_moments_the_result_is_another(given: Given, killed: Path):
    def forget(state: State) -> None:
        for moment in (*state.exp_avg.values(), *state.exp_avg_sq.values()):
            moment.zero_()

    change_newest_state(killed, given.model, forget)
    assert command(*given.arguments(killed, "--resume")) == 0
    assert (killed / "final_adapter.gguf").read_bytes() != (given.whole / "final_adapter.gguf").read_bytes()


def test_control_with_the_data_position_lost_the_result_is_another(given: Given, killed: Path):
    def go_back(state: State) -> None:
        state.step -= 1

    change_newest_state(killed, given.model, go_back)
    assert command(*given.arguments(killed, "--resume")) == 0
    assert (killed / "final_adapter.gguf").read_bytes() != (given.whole / "final_adapter.gguf").read_bytes()


def test_control_a_state_written_again_unchanged_gives_the_same_bytes(given: Given, killed: Path):
    """So that the two tests above show the change, and not what writing again does."""
    change_newest_state(killed, given.model, lambda _: None)
    assert command(*given.arguments(killed, "--resume")) == 0
    assert_same_result(given, killed)


# --- signals ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_step_saves_and_the_run_goes_on_to_the_same_bytes(
    given: Given, tmp_path: Path, number: signal.Signals, code: int
):
    folder = tmp_path / "run"
    with start(*given.arguments(folder)) as process:
        wait_for_step(process, 5)
        process.send_signal(number)
        last = list(events(process))[-1]
        error = process.stderr.read() if process.stderr else ""
    assert process.returncode == code, error
    assert (last["event"], last["stopped_by"]) == ("finished", number.name)
    assert last["adapter"] == str(folder / f"checkpoint-step-{last['step']}.gguf")
    assert Path(last["adapter"]).exists()
    state = load_newest_state(folder).state
    assert state is not None
    assert state.step == last["step"]
    assert "--resume" in error
    assert "Traceback" not in error
    assert command(*given.arguments(folder, "--resume")) == 0
    if last["step"] % 2:  # saved because of the stop alone
        Path(last["adapter"]).unlink()
    assert_same_result(given, folder)


# --- what was saved is damaged, or not there ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_newest_state_is_told_and_the_one_before_gives_the_same_bytes(
    given: Given, killed: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], suffix: str
):
    newest = load_newest_state(killed).state
    assert newest is not None
    damage(killed / "state" / f"step-{newest.step:08d}{suffix}")
    assert command(*given.arguments(killed, "--resume")) == 0
    told = capsys.readouterr().err
    assert "warning: a damaged state was passed over" in told
    assert f"step-{newest.step:08d}" in told
    before = load_newest_state(killed).state
    assert before is not None
    assert_same_result(given, killed)


def test_when_no_state_is_whole_the_run_is_refused(given: Given, killed: Path, capsys: pytest.CaptureFixture[str]):
    for path in (killed / "state").glob("*.safetensors"):
        cut(path)
    before = tree(killed)
    assert command(*given.arguments(killed, "--resume")) == 2
    assert "no saved state in" in capsys.readouterr().err
    assert {name: data for name, data in tree(killed).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


def test_a_run_killed_before_its_first_save_starts_from_step_0(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    with start(*given.arguments(folder, batch_size=1, epochs=3, save_steps=500)) as process:
        wait_for_step(process, 1)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (folder / "run.json").exists()
    assert not list(folder.rglob("*.safetensors"))
    assert command(*given.arguments(folder, "--resume", batch_size=1, epochs=3, save_steps=500)) == 0
    assert "nothing was saved yet: starting from step 0" in capsys.readouterr().err
    assert [event["step"] for event in metrics(folder) if event["event"] == "evaluated"].count(0) == 1
    fresh = tmp_path / "fresh"
    assert command(*given.arguments(fresh, batch_size=1, epochs=3)) == 0
    assert (folder / "final_adapter.gguf").read_bytes() == (fresh / "final_adapter.gguf").read_bytes()


def test_a_run_whose_steps_are_made_of_tokens_goes_on_to_the_same_bytes(given: Given, tmp_path: Path):
    """Killed within the second epoch, whose steps begin where the first epoch's happened to end."""
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    settings = {"batch_tokens": 60, "epochs": 4, "save_steps": 1}
    with start(*given.arguments(folder, **settings)) as process:
        wait_for_step(process, 6)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert command(*given.arguments(folder, "--resume", **settings)) == 0
    assert command(*given.arguments(fresh, **settings)) == 0
    assert (folder / "final_adapter.gguf").read_bytes() == (fresh / "final_adapter.gguf").read_bytes()
    assert command(*given.arguments(fresh, "--resume", **settings | {"batch_tokens": 61})) == 2


@pytest.mark.parametrize("leftovers", [[], [".lock"], [".lock", ".run.json.12345.partial"]])
def test_resume_where_nothing_is_yet_is_a_new_run(given: Given, tmp_path: Path, leftovers: list[str]):
    """A run that was killed before it wrote anything; the same command can always be given again."""
    folder = tmp_path / "run"
    for name in leftovers:
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    assert command(*given.arguments(folder, "--resume")) == 0
    assert_same_result(given, folder)
    assert not (folder / ".run.json.12345.partial").exists()


def test_a_finished_run_says_so_and_stays_as_it_is(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    shutil.copytree(given.whole, folder)
    assert command(*given.arguments(folder, "--resume")) == 0
    captured = capsys.readouterr()
    assert f"This run was finished already, at step {STEPS}" in captured.err
    assert "step_done" not in captured.out
    kept = [name for name in tree(folder) if name not in ("metrics.jsonl", "run.json", ".lock")]
    assert {name: tree(folder)[name] for name in kept} == {name: tree(given.whole)[name] for name in kept}


def test_killed_after_training_only_the_report_is_made_up_for(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Training is saved as finished before the check in llama.cpp; a kill during that check must not lose it."""
    folder = tmp_path / "run"
    monkeypatch.setattr(
        "gguflora.run.training._check_in_llamacpp", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert command(*given.arguments(folder)) == 130
    checked: list[Path] = []
    made_up_for = "gguflora.run.training._check_in_llamacpp"
    monkeypatch.setattr(made_up_for, lambda _request, _setup, adapter, *_, **__: checked.append(adapter) or [])
    for _ in range(2):
        assert command(*given.arguments(folder, "--resume")) == 0
    assert [adapter.name[:19] for adapter in checked] == ["best_adapter_epoch_"]
    assert_same_result(given, folder)


# --- what may not change ---


def other_base(given: Given, folder: Path) -> tuple[list[object], str]:
    return ["train", tiny_llama(folder / "other.gguf", seed=1), given.data], "model base"


def other_data(given: Given, folder: Path) -> tuple[list[object], str]:
    return ["train", given.model, write_dataset(folder / "other.jsonl", 15)], "data train"


@pytest.mark.parametrize("other", [other_base, other_data])
def test_another_base_or_other_data_is_refused_by_name(
    given: Given, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: Callable[..., object]
):
    before = tree(killed)
    arguments, named = other(given, tmp_path)  # type: ignore[misc]
    assert command(*arguments, *given.arguments(killed, "--resume")[3:]) == 2
    error = capsys.readouterr().err
    assert "can't be resumed" in error
    assert named in error
    assert {name: data for name, data in tree(killed).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"learning_rate": 2e-2}, "training learning_rate was 0.01, now it is 0.02"),
        ({"rank": 4}, "lora rank was 16, now it is 4"),
        ({"alpha": 16}, "lora alpha was 32.0, now it is 16.0"),
        ({"target": "attn_q"}, "lora target was ['all-linear'], now it is ['attn_q']"),
        ({"seed": 1}, "data train was"),  # the split is drawn by the seed
        ({"epochs": 21}, "training epochs was 15, now it is 21"),
        ({"batch_size": 3}, "training batch_size was 4, now it is 3"),
        ({"schedule": "linear"}, "training schedule was cosine, now it is linear"),
        ({"warmup_steps": 1}, "training warmup_steps was None, now it is 1"),
        ({"weight_decay": 0}, "training weight_decay was 0.01, now it is 0.0"),
        ({"max_grad_norm": 2}, "training max_grad_norm was 1.0, now it is 2.0"),
        ({"max_steps": 40}, "training max_steps was None, now it is 40"),
        ({"max_length": 21}, "data train was"),
        ({"validation_split": 0.3}, "data train was"),
    ],
)
def test_a_setting_that_changes_the_result_is_refused_by_name(
    given: Given, killed: Path, capsys: pytest.CaptureFixture[str], setting: dict[str, object], named: str
):
    assert command(*given.arguments(killed, "--resume", **setting)) == 2
    assert named in capsys.readouterr().err


def test_how_often_to_save_and_print_may_change(given: Given, killed: Path):
    assert command(*given.arguments(killed, "--resume", logging_steps=3, save_steps=1000, eval_steps=7)) == 0
    assert (killed / "final_adapter.gguf").read_bytes() == (given.whole / "final_adapter.gguf").read_bytes()


def test_another_name_of_the_same_target_is_no_other_setting(given: Given, tmp_path: Path):
    folder = tmp_path / "run"
    assert command(*given.arguments(folder, target="q_proj", epochs=1)) == 0
    assert command(*given.arguments(folder, "--resume", target="attn_q", epochs=1)) == 0
    assert command(*given.arguments(folder, "--resume", target="attn_k", epochs=1)) == 2


def test_another_version_of_torch_is_warned_about(
    given: Given, killed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.__version__", "9.9.9")
    assert command(*given.arguments(killed, "--resume")) == 0
    assert "9.9.9 now: the result will be equivalent, not equal to the bit" in capsys.readouterr().err


# --- two at once ---


def test_of_two_runs_started_together_one_wins_and_the_other_exits_6(given: Given, tmp_path: Path):
    folder = tmp_path / "run"
    arguments = given.arguments(folder, epochs=5000)  # longer than this test, whatever the machine does
    with start(*arguments) as one, start(*arguments) as two:
        while one.poll() is None and two.poll() is None:
            time.sleep(0.02)
        loser, winner = (one, two) if one.poll() is not None else (two, one)
        told = loser.stderr.read() if loser.stderr else ""
        winner.terminate()
        winner.communicate()
    assert loser.returncode == 6, told
    assert f"is in use by another run (process {winner.pid})" in told
    assert winner.returncode == 143


def test_a_running_run_is_protected_with_and_without_resume(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    arguments = given.arguments(folder, epochs=5000)
    with start(*arguments) as process:
        wait_for_step(process, 1)
        for more in ([], ["--resume"]):
            assert command(*given.arguments(folder, *more)) == 6
            assert f"{folder} is in use by another run (process {process.pid})" in capsys.readouterr().err
        process.kill()
        process.communicate()
    assert command(*given.arguments(folder)) == 2  # killed: the lock went with it, the run in it did not
    assert "holds an unfinished run on tiny" in capsys.readouterr().err
