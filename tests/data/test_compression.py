"""Compressed files: what comes out is what went in, damage is said, and a bomb costs neither time nor memory."""

from __future__ import annotations

import gzip
import io
import sys
import time
import tracemalloc
from collections import deque
from pathlib import Path

import pytest

from gguflora.data import compression, iterate_examples, load_csv, load_examples, load_jsonl, load_text
from gguflora.data.compression import unpacked
from gguflora.data.example import Example
from gguflora.errors import DataError, UsageError
from tests.data.compressed import COMPRESS, OPEN, zstd

MIB = 2**20
EXAMPLE = Example.completion("a", "b")
TEXTS = {
    ".jsonl": (load_jsonl, b'{"prompt": "a", "completion": "b"}\n', EXAMPLE),
    ".json": (load_jsonl, b'[{"prompt": "a", "completion": "b"}]', EXAMPLE),
    ".csv": (load_csv, b"prompt,completion\na,b\n", EXAMPLE),
    ".tsv": (load_csv, b"prompt\tcompletion\na\tb\n", EXAMPLE),
    ".txt": (load_text, b"Once.\n", Example.completion("", "Once.\n")),
    ".md": (load_text, b"# Once\n", Example.completion("", "# Once\n")),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("format", TEXTS)
def test_every_text_format_is_read_compressed(format: str, suffix: str, tmp_path: Path):
    load, data, example = TEXTS[format]
    path = tmp_path / f"d{format}{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    assert load(path) == load_examples([path]) == [example]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_files_in_several_parts_are_read_to_the_end(suffix: str):
    """What `cat a.gz b.gz` makes."""
    data = COMPRESS[suffix](b"one\n" * 1000) + COMPRESS[suffix](b"two\n" * 1000)
    assert unpacked(io.BytesIO(data), suffix, "d").read() == b"one\n" * 1000 + b"two\n" * 1000


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("left", [1, 5, 20])
def test_a_file_that_was_cut_is_refused(suffix: str, left: int):
    """Whoever does not look for the end of the stream would train on less than there is."""
    whole = COMPRESS[suffix](bytes(range(256)) * 100)
    with pytest.raises(DataError, match=r"^d\.jsonl is damaged or cut \(Compressed file ended .*\); get it again\.$"):
        unpacked(io.BytesIO(whole[:-left]), suffix, "d.jsonl").read()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_none_or_was_changed_is_refused(suffix: str):
    with pytest.raises(DataError, match=r"^d is damaged or cut \(.*\); get it again\.$"):
        unpacked(io.BytesIO(b'{"prompt": "a"}'), suffix, "d").read()
    changed = bytearray(gzip.compress(bytes(range(256)) * 100))
    changed[-6] ^= 1  # of the checksum
    with pytest.raises(DataError, match=r"^d is damaged or cut .*CRC"):
        unpacked(io.BytesIO(changed), ".gz", "d").read()


def bomb(path: Path, line: bytes, mib: int) -> Path:
    """A compressed file of so many MiB of one line again and again, written as it is made."""
    with OPEN[path.suffix](path, "wb") as file:
        for _ in range(mib):
            file.write(line * (MIB // len(line)))
    return path


LINES = {
    "no line end": b"a",
    "blank lines": b"\n",
    "good lines": b'{"prompt": "a", "completion": "b"}\n',
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("line", LINES)
def test_a_bomb_is_refused_soon(line: str, suffix: str, tmp_path: Path):
    """150 MiB out of some 100 KB: refused at 1 MiB and 200 times what was read."""
    path = bomb(tmp_path / f"d.jsonl{suffix}", LINES[line], 150)
    assert path.stat().st_size < MIB
    began = time.monotonic()
    with pytest.raises(DataError, match="refused as a bomb") as refused:
        deque(iterate_examples([path]), maxlen=1)
    assert "d.jsonl" in str(refused.value)
    assert time.monotonic() - began < 30  # 3 s on an idle machine, where all of it would take 200


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bomb_without_a_line_end_is_not_held(suffix: str, tmp_path: Path):
    path = bomb(tmp_path / f"d.jsonl{suffix}", b"a", 150)
    tracemalloc.start()
    with pytest.raises(DataError, match="refused as a bomb"):
        load_jsonl(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB


def test_the_bomb_is_told_exactly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compression, "GRACE", 1000)
    data = gzip.compress(b"a" * 10**6)
    with pytest.raises(DataError) as refused:
        unpacked(io.BytesIO(data), ".gz", "d.txt.gz").read()
    assert str(refused.value) == (
        "d.txt.gz unpacks to more than 200 times its size, or more than 1099511627776 bytes; "
        "it is refused as a bomb: unpack it yourself if you trust it."
    )
    monkeypatch.setattr(compression, "MAX_UNPACKED", 100)
    with pytest.raises(DataError, match="or more than 100 bytes"):
        unpacked(io.BytesIO(gzip.compress(bytes(range(200)))), ".gz", "d").read()


def test_text_that_packs_well_is_no_bomb():
    """Repeated phrases, as templates make them: 50 times smaller."""
    data = b"".join(b'{"prompt": "What is %d + %d?", "completion": "%d"}\n' % (n, n, 2 * n) for n in range(200_000))
    packed = gzip.compress(data)
    assert unpacked(io.BytesIO(packed), ".gz", "d").read() == data


def test_zstd_that_looks_back_further_than_allowed_is_refused():
    """A window of 2 GiB is memory that the reader would have to hold."""
    options = {zstd.CompressionParameter.window_log: 31, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(b"a" * MIB) + compressor.flush()  # of unknown length: the window is as asked
    with pytest.raises(DataError, match=r"^d\.zst is damaged or cut \(.*memory.*\); get it again\.$"):
        unpacked(io.BytesIO(data), ".zst", "d.zst").read()


def test_without_zstd_the_command_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch):
    for name in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as refused:
        unpacked(io.BytesIO(b""), ".zst", "d")
    assert str(refused.value) == "Files that end in .zst need zstd: pip install 'gguflora[zstd]'."
