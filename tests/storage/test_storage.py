"""A name that exists always holds complete data, whatever goes wrong while writing."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gguflora.errors import MachineError
from gguflora.storage import TEMPORARY_SUFFIX, remove_leftovers, unnamed_file, write_atomically, write_bytes


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_and_replaced_whole(tmp_path):
    write_bytes(tmp_path / "file", b"first, longer")
    write_bytes(tmp_path / "file", b"second")
    assert files(tmp_path) == {"file": b"second"}


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b", whole")

    write_atomically(path, write)
    assert files(tmp_path) == {"file": b"half, whole"}


def test_data_is_forced_to_the_disk_before_the_name_moves_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_bytes(tmp_path / "file", b"data")
    assert calls == [f".file.{os.getpid()}.partial", "replace", tmp_path.name]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_an_error_of_the_system_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch, call, code):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    if call == "open":
        monkeypatch.setattr(Path, "open", refuse)
    else:
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(MachineError) as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{path} could not be written: {os.strerror(code)}; make room there or give another path."
    )
    assert files(tmp_path) == {"file": b"old"}


def test_a_folder_that_can_not_be_forced_to_the_disk_is_told_or_known(tmp_path, monkeypatch):
    """EINVAL means that this file system has no such thing; every other error is told."""
    fsync = os.fsync

    def refuse_folders(code):
        def fake(fd):
            if Path(f"/proc/self/fd/{fd}").resolve() == tmp_path.resolve():
                raise OSError(code, os.strerror(code))
            fsync(fd)

        return fake

    monkeypatch.setattr(os, "fsync", refuse_folders(errno.EINVAL))
    write_bytes(tmp_path / "file", b"1")
    monkeypatch.setattr(os, "fsync", refuse_folders(errno.EIO))
    with pytest.raises(MachineError, match="Input/output error"):
        write_bytes(tmp_path / "file", b"2")
    assert files(tmp_path) == {"file": b"2"}  # whole, as the docstring says


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_whatever_else_stops_the_writer_leaves_the_old_file_and_no_leftover(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert files(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("name", ["absent/file", "file/below", "n" * 255, "folder"])
def test_a_path_that_can_not_be_a_file_is_one_clear_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(MachineError, match="could not be written: "):
        write_bytes(tmp_path / name, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    script = (
        "import os, pathlib, signal, gguflora.storage as s\n"
        "s.write_atomically(pathlib.Path('file'), lambda f: (f.write(b'x'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    [leftover] = tmp_path.iterdir()
    assert leftover.name.endswith(TEMPORARY_SUFFIX)
    for name in ("file", "file.partial", ".hidden", ".download.partial"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == 1
    assert remove_leftovers(tmp_path) == 0
    assert sorted(files(tmp_path)) == [".download.partial", ".hidden", "file", "file.partial"]


def test_without_leftovers_or_folder_nothing_is_removed(tmp_path):
    assert remove_leftovers(tmp_path) == 0
    assert remove_leftovers(tmp_path / "absent") == 0


def test_a_file_without_a_name_can_be_mapped_and_leaves_nothing(tmp_path, monkeypatch):
    """The map goes on after the file is closed; on the disk nothing is seen, so nothing stays after a kill."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with unnamed_file() as file:
        file.write(b"much data")
        file.flush()
        assert files(tmp_path) == {}
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert data[:] == b"much data"
    data.close()


def test_where_a_file_without_a_name_cannot_be_made_the_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    told = r"A temporary file in .*absent could not be written: .*set TMPDIR"
    with pytest.raises(MachineError, match=told), unnamed_file():
        pass


def test_a_disk_that_fills_while_a_file_without_a_name_is_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(MachineError, match="No space left on device; make room there"), unnamed_file():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_much_data_is_not_put_where_temporary_files_may_be_memory(tmp_path, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("gguflora.storage._FOR_LARGE_FILES", tmp_path)
    with unnamed_file() as file:
        assert Path(f"/proc/self/fd/{file.fileno()}").readlink().parent == tmp_path
