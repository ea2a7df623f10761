"""One run to a folder, nothing overwritten, and what run.json says decides whether a run may go on."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguflora.errors import FileError, FolderInUse, MachineError, UsageError
from gguflora.run.folder import check_folder, check_same_run, claim_folder, read_record, write_record

RECORD: dict[str, Any] = {
    "model": {"path": "a.gguf", "name": "Smol", "base": "ab" * 32, "tokenizer": "cd" * 32, "template": "ef" * 32},
    "data": {"train": "12" * 32, "validation": "34" * 32},
    "lora": {"rank": 16, "alpha": 32.0, "target": ["all-linear"]},
    "training": {"learning_rate": 1e-4, "epochs": 3, "save_steps": 500, "logging_steps": 10, "threads": None},
    "environment": {"torch": "2.13.0", "threads": "2"},
}


@pytest.mark.parametrize("name", ["new", "new/below/it"])
def test_checking_makes_nothing(tmp_path: Path, name: str):
    check_folder(tmp_path / name, resume=False)
    check_folder(tmp_path / name, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_makes_the_folder_and_ends_with_its_block(tmp_path: Path):
    folder = tmp_path / "new/below/it"
    with claim_folder(folder, resume=False):
        assert (folder / ".lock").read_text() == f"process {os.getpid()}"
        with pytest.raises(FolderInUse, match=f"in use by another run .process {os.getpid()}."):
            check_folder(folder, resume=True)
        with pytest.raises(FolderInUse), claim_folder(folder, resume=True):
            pytest.fail("two hold one folder")
    with claim_folder(folder, resume=False):
        pass


def test_a_claim_ends_when_its_process_is_killed(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from gguflora.run.folder import claim_folder\n"
        "with claim_folder(Path(sys.argv[1]), False): print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"process {process.pid}"):
            check_folder(tmp_path / "run", resume=False)
        process.kill()
    with claim_folder(tmp_path / "run", resume=False):
        pass


def test_two_that_only_look_do_not_see_each_other(tmp_path: Path):
    with claim_folder(tmp_path, resume=False):
        pass
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as the other's look does
        check_folder(tmp_path, resume=False)


def test_a_run_that_came_in_between_is_not_overwritten(tmp_path: Path):
    """Two started together: this one looked, then the other ran from beginning to end."""
    check_folder(tmp_path, resume=False)
    write_record(tmp_path, RECORD)
    with pytest.raises(UsageError, match="holds an unfinished run on Smol"), claim_folder(tmp_path, resume=False):
        pytest.fail("it was overwritten")


def test_what_a_killed_writer_left_is_nothing_and_is_removed(tmp_path: Path):
    (tmp_path / "state").mkdir()
    names = [".run.json.1234.partial", "state/.step-00000002.json.99.partial"]
    (tmp_path / names[0]).touch()
    (tmp_path / names[1]).touch()
    (tmp_path / "state/step-00000001.json").touch()
    write_record(tmp_path, RECORD)
    with claim_folder(tmp_path, resume=True):
        pass
    assert not [name for name in names if (tmp_path / name).exists()]
    assert (tmp_path / "state/step-00000001.json").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path: Path, resume: bool):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"is not empty|no run in it"):
        check_folder(tmp_path, resume)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({}, "an unfinished run on Smol"),
        ({"result": {"stopped_by": "SIGINT"}}, "an unfinished run"),
        ({"result": {"stopped_by": None, "step": 3}}, "a finished run on Smol"),
    ],
)
def test_the_run_in_a_folder_is_named(tmp_path: Path, result: dict[str, Any], words: str):
    write_record(tmp_path, RECORD | result)
    with pytest.raises(UsageError, match=words):
        check_folder(tmp_path, resume=False)
    check_folder(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("code", "error", "exit_code"),
    [
        (errno.EACCES, UsageError, 2),
        (errno.EROFS, UsageError, 2),
        (errno.ENOSPC, MachineError, 4),
        (errno.EDQUOT, MachineError, 4),
        (errno.EMFILE, MachineError, 4),
    ],
)
def test_a_folder_that_can_not_be_made_is_yours_and_a_full_disk_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[UsageError | MachineError], exit_code: int
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(error, match=os.strerror(code)) as caught, claim_folder(tmp_path / "new", resume=False):
        pass
    assert caught.value.exit_code == exit_code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o000, 0o555, 0o300])
def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int):
    """Tests may run as root, whom no mode binds: so the system's answer is what is replaced."""
    monkeypatch.setattr(os, "access", lambda _, wanted: wanted & (mode >> 6) == wanted)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(UsageError, match="no permission in"):
            check_folder(folder, resume=False)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match="can't be locked"), claim_folder(tmp_path, resume=False):
        pass


def test_a_record_comes_back_whatever_the_path(tmp_path: Path):
    record = copy.deepcopy(RECORD)
    record["model"]["path"] = "na\udcefve 🙂.gguf"  # a byte that is no UTF-8
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / "run.json").read_bytes().decode())
    assert read_record(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}", '{"model": {}}', "[" * 100_000])
def test_a_damaged_record_is_told(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FileError, match=r"run\.json is damaged"):
        read_record(tmp_path)


def changed(part: str, name: str, value: object) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    record[part][name] = value
    return record


@pytest.mark.parametrize("part", ["model", "data", "lora", "training"])
def test_every_difference_that_matters_is_refused_by_name(tmp_path: Path, part: str):
    free = {"path", "save_steps", "logging_steps", "threads"}
    for name in set(RECORD[part]) - free:
        with pytest.raises(UsageError, match=f"can't be resumed: {part} {name} was .*, now it is other"):
            check_same_run(tmp_path, RECORD, changed(part, name, "other"))
        without = copy.deepcopy(RECORD)
        del without[part][name]
        with pytest.raises(UsageError, match=f"{part} {name} was None"):
            check_same_run(tmp_path, without, RECORD)


def test_what_changes_no_result_may_differ(tmp_path: Path):
    """The file may have moved; how often to print and save, and the threads, are free."""
    for part, name in (("model", "path"), ("training", "save_steps"), ("training", "logging_steps")):
        assert check_same_run(tmp_path, RECORD, changed(part, name, 77)) == []
    assert check_same_run(tmp_path, RECORD, changed("training", "threads", 8)) == []


def test_another_environment_is_a_warning_that_names_it(tmp_path: Path):
    [warning] = check_same_run(tmp_path, RECORD, changed("environment", "torch", "3.0"))
    assert warning == "torch was 2.13.0 and is 3.0 now: the result will be equivalent, not equal to the bit"
