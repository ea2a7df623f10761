"""A saved state is all that a run needs to go on, counts only when it is whole, and never takes the last one along."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from gguflora.errors import FileError, MachineError
from gguflora.gguf import Identity, read_adapter
from gguflora.model import LoraPair
from gguflora.storage import TEMPORARY_SUFFIX
from gguflora.train import Checkpoints, State, load_newest_state, named_parameters, new_state

BASE = Identity("a" * 64, "b" * 64, "c" * 64)


def some_state(step: int, seed: int = 0) -> State:
    """A state whose every field differs from its default, in an order that no sorting gives."""
    torch.manual_seed(seed)
    names = ["blk.10.ffn_up.weight", "blk.2.attn_q.weight", "blk.0.attn_v.weight"]
    state = new_state({name: LoraPair(torch.randn(2, 5), torch.randn(7, 2)) for name in names})
    for moments in (state.exp_avg, state.exp_avg_sq):
        for tensor in moments.values():
            tensor.copy_(torch.rand_like(tensor))
    state = dataclasses.replace(state, epoch_nll=0.1, epoch_weight=3.5, final_loss=2.5, best_loss=1.25, best_epoch=2)
    return dataclasses.replace(state, step=step, finished=True, tokens=77, seconds=0.3)


def content(state: State) -> list[object]:
    """Everything in a state, in order, exactly."""
    tensors = [(name, tensor.detach().numpy().tobytes()) for name, tensor in named_parameters(state.pairs)]
    moments = [
        (name, tensor.numpy().tobytes())
        for group in (state.exp_avg, state.exp_avg_sq)
        for name, tensor in sorted(group.items())
    ]
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    numbers = {name: value for name, value in fields.items() if name not in ("pairs", "exp_avg", "exp_avg_sq")}
    return [tensors, moments, numbers]


def save(folder: Path, *steps: int) -> list[State]:
    checkpoints = Checkpoints(folder, "llama", 8.0, BASE)
    states = [some_state(step, seed=step) for step in steps]
    for state in states:
        checkpoints.save_state(state)
    return states


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


def test_a_state_comes_back_to_the_bit_and_in_its_order(tmp_path: Path):
    [state] = save(tmp_path, 500)
    loaded = load_newest_state(tmp_path)
    assert loaded.state is not None
    assert content(loaded.state) == content(state)
    assert loaded.damaged == []
    assert all(parameter.requires_grad for _, parameter in named_parameters(loaded.state.pairs))


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path):
    states = save(tmp_path, 2, 4, 9, 10, 1000)
    assert files(tmp_path) == [
        "step-00000010.json",
        "step-00000010.safetensors",
        "step-00001000.json",
        "step-00001000.safetensors",
    ]
    loaded = load_newest_state(tmp_path).state
    assert loaded is not None
    assert content(loaded) == content(states[-1])


def test_without_any_save_there_is_no_state(tmp_path: Path):
    assert load_newest_state(tmp_path).state is None
    (tmp_path / "state").mkdir()
    assert load_newest_state(tmp_path).state is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1 if path.suffix == ".safetensors" else -5] ^= 1
    path.write_bytes(data)


def change_step(path: Path) -> None:
    """Valid JSON with another number in it."""
    text = path.read_text()
    assert '"step": 8,' in text
    path.write_text(text.replace('"step": 8,', '"step": 9,'))


def change_order(path: Path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"pairs": manifest["pairs"][::-1]}))


def no_object(path: Path) -> None:
    path.write_text("[1, 2]")


def too_deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def newer_schema(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))


DAMAGE = [(damage, ".safetensors") for damage in (cut, empty, flip_last_bit, Path.unlink)] + [
    (damage, ".json")
    for damage in (cut, empty, flip_last_bit, change_step, change_order, no_object, too_deep, newer_schema, Path.unlink)
]


@pytest.mark.parametrize(("damage", "suffix"), DAMAGE)
def test_a_damaged_newest_state_is_passed_over_by_name(tmp_path: Path, damage, suffix: str):
    whole, _ = save(tmp_path, 4, 8)
    damage(tmp_path / "state" / f"step-00000008{suffix}")
    loaded = load_newest_state(tmp_path)
    assert loaded.state is not None
    assert content(loaded.state) == content(whole)
    [named] = loaded.damaged
    assert "step-00000008" in named


def test_tensors_of_another_step_are_damage(tmp_path: Path):
    """Two files that are whole, but not of one state."""
    save(tmp_path, 4, 8)
    (tmp_path / "state/step-00000008.safetensors").write_bytes(
        (tmp_path / "state/step-00000004.safetensors").read_bytes()
    )
    loaded = load_newest_state(tmp_path)
    assert loaded.state is not None
    assert loaded.state.step == 4


def test_every_bit_of_the_json_counts(tmp_path: Path):
    """No flipped bit gives another state: it is damage, or it changes nothing that is read (a space)."""
    [state] = save(tmp_path, 8)
    path = tmp_path / "state/step-00000008.json"
    original = path.read_bytes()
    for place in range(len(original)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        try:
            loaded = load_newest_state(tmp_path).state
        except FileError:
            continue
        assert loaded is not None
        assert content(loaded) == content(state), f"byte {place}"


def test_damage_everywhere_is_told_and_never_taken_for_a_new_run(tmp_path: Path):
    save(tmp_path, 4, 8)
    for path in (tmp_path / "state").glob("*.safetensors"):
        cut(path)
    with pytest.raises(FileError) as caught:
        load_newest_state(tmp_path)
    assert "step-00000004" in str(caught.value)
    assert "step-00000008" in str(caught.value)


def test_a_kill_during_the_very_first_save_is_as_if_nothing_was_saved(tmp_path: Path):
    save(tmp_path, 4)
    (tmp_path / "state/step-00000004.json").unlink()  # it is written last
    loaded = load_newest_state(tmp_path)
    assert loaded.state is None
    assert len(loaded.damaged) == 1


def test_going_on_from_an_earlier_state_removes_the_damaged_later_ones(tmp_path: Path):
    save(tmp_path, 4, 8)
    cut(tmp_path / "state/step-00000008.safetensors")
    save(tmp_path, 6)
    assert files(tmp_path) == [f"step-0000000{step}{suffix}" for step in (4, 6) for suffix in (".json", ".safetensors")]
    loaded = load_newest_state(tmp_path)
    assert loaded.state is not None
    assert (loaded.state.step, loaded.damaged) == (6, [])


@pytest.mark.parametrize("stops_at", range(12))
def test_a_save_that_stops_anywhere_leaves_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int
):
    """Every call that changes the folder, stopped once: loaded is then the state before or the new one."""
    old = save(tmp_path, 2, 4)[-1]
    new = some_state(6, seed=6)
    calls = iter(range(100))

    def stopping(real):
        def call(*arguments, **options):
            if next(calls) == stops_at:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace", "open", "unlink"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    try:
        Checkpoints(tmp_path, "llama", 8.0, BASE).save_state(new)
        finished = True
    except KeyboardInterrupt:
        finished = False
    monkeypatch.undo()
    assert finished == (next(calls) <= stops_at), "there is no such call: give a smaller range"
    loaded = load_newest_state(tmp_path).state
    assert loaded is not None
    assert content(loaded) in (content(old), content(new))


def test_only_the_best_adapter_replaces_others(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, "llama", 8.0, BASE)
    state = some_state(1)
    checkpoints.save_adapter(state, "best", "best_adapter_epoch_1.gguf")
    checkpoints.save_adapter(state, "epoch", "checkpoint_epoch_1.gguf")
    path = checkpoints.save_adapter(state, "best", "best_adapter_epoch_2.gguf")
    assert path == tmp_path / "best_adapter_epoch_2.gguf"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "best_adapter_epoch_2.gguf",
        "checkpoint_epoch_1.gguf",
    ]
    adapter = read_adapter(path)
    assert (adapter.architecture, adapter.alpha, adapter.base) == ("llama", 8.0, BASE)
    assert list(adapter.pairs) == list(state.pairs)


def test_the_older_best_stays_until_the_better_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, "llama", 8.0, BASE)
    checkpoints.save_adapter(some_state(1), "best", "best_adapter_epoch_1.gguf")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"best_adapter_epoch_2\.gguf.*No space left"):
        checkpoints.save_adapter(some_state(2), "best", "best_adapter_epoch_2.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["best_adapter_epoch_1.gguf"]


def test_a_folder_that_is_gone_is_an_error_of_the_machine(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "gone", "llama", 8.0, BASE)
    with pytest.raises(MachineError, match="gone/state could not be made: No such file"):
        checkpoints.save_state(some_state(1))


def test_a_save_leaves_no_temporary_file(tmp_path: Path):
    save(tmp_path, 1, 2, 3)
    assert not list(tmp_path.rglob(f".*{TEMPORARY_SUFFIX}"))
