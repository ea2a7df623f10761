"""Addresses: read in blocks through fsspec, whose memory:// and file:// need no network."""

from __future__ import annotations

import gzip
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from gguflora.data import load_examples, load_jsonl
from gguflora.data.example import Example
from gguflora.data.remote import is_remote, open_address
from gguflora.errors import DataError, UsageError

EXAMPLE = Example.completion("a", "b")
LINE = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("given", "remote"),
    [
        ("s3://bucket/d.jsonl", True),
        ("hf://datasets/name/d.parquet", True),
        ("https://host/d.csv", True),
        ("memory://d.jsonl", True),
        ("d.jsonl", False),
        ("C:/d.jsonl", False),
        ("C://d.jsonl", False),
        ("a:b.jsonl", False),
        ("./s3:/d", False),
    ],
)
def test_what_is_an_address(given: str, remote: bool):
    assert is_remote(given) is remote


def test_files_at_addresses_are_read_by_their_names(memory: fsspec.AbstractFileSystem):
    memory.pipe("/data/a.jsonl", LINE)
    memory.pipe("/data/b.csv.gz", gzip.compress(b"prompt,completion\na,b\n"))
    memory.pipe("/data/c.txt", b"Once.\n")
    assert load_jsonl("memory://data/a.jsonl") == [EXAMPLE]
    loaded = load_examples(["memory://data/a.jsonl", "memory://data/b.csv.gz", "memory://data/c.txt"])
    assert loaded == [EXAMPLE, EXAMPLE, Example.completion("", "Once.\n")]
    assert loaded[0].source == "memory://data/a.jsonl:1"


def test_parquet_at_an_address_is_read_where_it_is(memory: fsspec.AbstractFileSystem):
    import pyarrow as pa
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), file)
    memory.pipe("/data/d.parquet", file.getvalue())
    assert load_examples(["memory://data/d.parquet"]) == [EXAMPLE]


def test_a_pattern_takes_in_all_addresses_that_fit(memory: fsspec.AbstractFileSystem):
    for name in ("b", "a", "c"):
        memory.pipe(f"/data/{name}.jsonl", LINE.replace(b'"a"', f'"{name}"'.encode()))
    memory.pipe("/data/d.csv", b"")
    loaded = load_examples(["memory://data/*.jsonl"])
    assert loaded == [Example.completion(name, "b") for name in "abc"]
    with pytest.raises(DataError, match=r"^No file fits memory://data/\*\.tsv; check the pattern\.$"):
        load_examples(["memory://data/*.tsv"])


def test_a_local_file_has_an_address_too(tmp_path: Path):
    (tmp_path / "d.jsonl").write_bytes(LINE)
    assert load_examples([f"file://{tmp_path}/d.jsonl"]) == [EXAMPLE]


def test_what_can_not_be_reached_is_said_with_its_address():
    with pytest.raises(DataError) as refused:
        load_examples(["memory://data/none.jsonl"])
    assert str(refused.value) == "memory://data/none.jsonl can't be read (No such file); check the address."
    with pytest.raises(
        DataError, match=r"^unheard://of/d\.jsonl can't be read \(Protocol not known: unheard.*\); check"
    ):
        load_examples(["unheard://of/d.jsonl"])
    with pytest.raises(DataError, match=r"^zip://\*\.jsonl::memory://d\.zip chains addresses"):
        load_examples(["zip://*.jsonl::memory://d.zip"])
    with pytest.raises(DataError, match=r"^zip://d\.jsonl::memory://d\.zip chains addresses, which is not read; give"):
        load_jsonl("zip://d.jsonl::memory://d.zip")


@pytest.mark.parametrize(
    ("package", "address"),
    [
        ("s3fs", "s3://bucket/d.jsonl"),
        ("s3fs", "s3://bucket/*.jsonl"),
        ("huggingface_hub", "hf://datasets/name/d.parquet"),
        ("gcsfs", "gs://bucket/d.csv.gz"),
        ("adlfs", "az://container/d.jsonl"),
        ("aiohttp", "https://host.invalid/d.jsonl"),
    ],
)
def test_a_package_that_an_address_needs_is_named(package: str, address: str, monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    registry = importlib.import_module("fsspec.registry")  # a mapping of that name is in its place in fsspec
    monkeypatch.setattr(registry, "_registry", {})  # classes that were found before
    with pytest.raises(UsageError) as refused:
        load_examples([address])
    assert str(refused.value) == f"{address} needs {package}, which is not installed: pip install {package}."


def test_a_package_that_is_broken_is_said(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise ImportError("cannot import name 'x' from 's3fs'")

    monkeypatch.setattr("fsspec.open", broken)
    with pytest.raises(UsageError) as refused:
        load_examples(["s3://bucket/d.jsonl"])
    assert str(refused.value) == (
        "s3://bucket/d.jsonl needs a package that can't be used (cannot import name 'x' from 's3fs'); install it again."
    )


def test_an_error_in_the_middle_is_told_with_the_address(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
):
    """Each file system's library has errors of its own; one of ours is never dressed up as theirs."""

    class TheirError(Exception):
        pass

    def fails(*_: object) -> bytes:
        raise TheirError("token\nexpired")

    memory.pipe("/d.jsonl", LINE * 10_000)
    with open_address("memory://d.jsonl") as file:
        file.readline()
        monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fails)
        with pytest.raises(DataError) as refused:
            file.read()
    assert str(refused.value) == (
        "memory://d.jsonl can't be read (token expired); check the address and your access to it."
    )
    monkeypatch.undo()
    with pytest.raises(TheirError), open_address("memory://d.jsonl"):
        raise TheirError


def test_only_what_is_asked_for_is_read(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch):
    """A file of any size: the first example takes the first block."""
    from fsspec.implementations.memory import MemoryFile

    from gguflora.data import iterate_examples

    taken: list[int] = []
    original = MemoryFile.read

    def counted(file: MemoryFile, size: int = -1) -> bytes:
        data = original(file, size)
        taken.append(len(data))
        return data

    memory.pipe("/d.jsonl", LINE * 100_000)
    monkeypatch.setattr(MemoryFile, "read", counted)
    assert next(iterate_examples(["memory://d.jsonl"])) == EXAMPLE
    assert sum(taken) <= 2**17


def test_without_fsspec_the_command_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for given in ("s3://bucket/d.jsonl", "s3://bucket/*.jsonl"):
        with pytest.raises(UsageError) as refused:
            load_examples([given])
        assert str(refused.value) == "Addresses such as s3://... need fsspec: pip install 'gguflora[fsspec]'."
