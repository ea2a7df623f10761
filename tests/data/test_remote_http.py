"""Addresses on a real HTTP server: files and parts of them, packed ones, and what goes wrong on the way."""

from __future__ import annotations

import gzip
import io
import socket
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet
import pytest

from gguflora.data import iterate_examples, load_examples
from gguflora.data.example import Example
from gguflora.errors import DataError
from tests.data.http_files import Served, http_files

EXAMPLE = Example.completion("a", "b")
LINE = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def served() -> Iterator[Served]:
    with http_files() as served:
        yield served


def parquet(rows: int = 1) -> bytes:
    """One row group for each row, beside a wide column that means nothing."""
    file = io.BytesIO()
    table = pa.table({"prompt": ["a"] * rows, "completion": ["b"] * rows})
    pyarrow.parquet.write_table(table, file, row_group_size=1)
    return file.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_files_are_read_by_their_names_whether_the_server_gives_parts_or_not(served: Served, ranges: bool):
    served.ranges = ranges
    served.files = {"/a.jsonl": LINE, "/b.csv.gz": gzip.compress(b"prompt,completion\na,b\n"), "/c.txt": b"Once.\n"}
    loaded = load_examples([f"{served.url}{path}" for path in served.files])
    assert loaded == [EXAMPLE, EXAMPLE, Example.completion("", "Once.\n")]
    assert loaded[0].source == f"{served.url}/a.jsonl:1"


def test_of_a_large_file_no_more_is_asked_for_than_is_needed(served: Served):
    """fsspec reads 5 MiB ahead."""
    served.files = {"/d.jsonl": LINE * (12 * 2**20 // len(LINE))}
    assert next(iterate_examples([f"{served.url}/d.jsonl"])) == EXAMPLE
    assert 0 < served.sent < 6 * 2**20


def test_parquet_is_read_where_it_is_in_parts(served: Served):
    served.files = {"/d.parquet": parquet(3)}
    assert load_examples([f"{served.url}/d.parquet"]) == [EXAMPLE] * 3


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["/d.jsonl", "/d.jsonl.gz", "/d.parquet"])
def test_a_connection_that_breaks_is_an_error_with_the_address_and_never_a_shorter_file(
    served: Served, name: str, ranges: bool
):
    lines = b"".join(b'{"prompt": "%d", "completion": "b"}\n' % number for number in range(2000))
    whole = {"/d.jsonl": lines, "/d.jsonl.gz": gzip.compress(lines), "/d.parquet": parquet(50)}[name]
    served.files, served.ranges, served.cut = {name: whole}, ranges, len(whole) // 2
    with pytest.raises(DataError) as refused:
        load_examples([served.url + name])
    assert str(refused.value).startswith(f"{served.url}{name} can't be read (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("status", "why"), [(404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error")])
def test_what_the_server_refuses_is_said_with_the_address(served: Served, status: int, why: str):
    """fsspec says of each of them that there is no such file, and hides the cause behind it."""
    served.refusal = status
    with pytest.raises(DataError) as refused:
        load_examples([f"{served.url}/d.jsonl"])
    assert str(refused.value) == (
        f"{served.url}/d.jsonl can't be read ({status}, message='{why}', url='{served.url}/d.jsonl'); "
        "check the address and your access to it."
    )


def test_a_server_that_is_not_there_is_said():
    with socket.socket() as taken:  # bound and not listening: nothing answers at its port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/d.jsonl"
        with pytest.raises(DataError, match=rf"^{url} can't be read \(.*connect.*\); check the address"):
            load_examples([url])
