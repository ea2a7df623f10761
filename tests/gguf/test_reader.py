"""The reader agrees with gguf-py on a real file, and refuses every broken one with one clear sentence."""

from __future__ import annotations

import os
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.errors import FileError, GgufloraError, ModelError
from gguflora.gguf import BLOCKS, GgmlType, ValueType, open_gguf

# A GGUF file assembled by hand, from the format's description alone: nothing of ours writes what these tests read.


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def text(key: str | bytes, value: str | bytes) -> bytes:
    return pair(key, 8, string(value))


def array(key: str, kind: int, count: int, elements: bytes = b"") -> bytes:
    return pair(key, 9, struct.pack("<IQ", kind, count) + elements)


def tensor(name: str | bytes, ne: list[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    dims = struct.pack(f"<{len(ne)}Q", *ne)
    return (
        string(name)
        + struct.pack("<I", len(ne) if n_dims is None else n_dims)
        + dims
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    *pairs: bytes,
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_kv is None else n_kv,
    )
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data if data else header


ARCHITECTURE = text("general.architecture", "llama")


def small_file() -> bytes:
    """About 3 KB: every kind of value, three tensors, ending with the last tensor's last byte."""
    tokens = [f"token{i}" for i in range(60)]
    return gguf(
        ARCHITECTURE,
        u32("general.alignment", 64),
        pair("a.u8", 0, b"\x07"),
        pair("a.i8", 1, b"\xff"),
        pair("a.u16", 2, struct.pack("<H", 65535)),
        pair("a.i16", 3, struct.pack("<h", -300)),
        pair("a.i32", 5, struct.pack("<i", -5)),
        pair("a.f32", 6, struct.pack("<f", 0.25)),
        pair("a.bool", 7, b"\x01"),
        pair("a.u64", 10, struct.pack("<Q", 2**63)),
        pair("a.i64", 11, struct.pack("<q", -(2**62))),
        pair("a.f64", 12, struct.pack("<d", 1e-300)),
        array("a.floats", 6, 3, struct.pack("<3f", 1, 2, 3)),
        array("a.none", 8, 0),
        array("a.tokens", 8, len(tokens), b"".join(map(string, tokens))),
        text("a.text", "größer 日本"),
        tensors=(
            tensor("first.weight", [8, 4], 0, 0),  # 128 bytes
            tensor("second.weight", [32, 3], 2, 128),  # Q4_0: 3 rows of 18 bytes = 54
            tensor("third.weight", [100], 1, 192),  # F16: 200 bytes
        ),
        data=bytes(range(128)) + bytes(54) + bytes(10) + bytes(range(200)),
        alignment=64,
    )


def write(folder: Path, data: bytes) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(data)
    return path


def is_one_sentence(message: str) -> bool:
    return message.isprintable() and message.endswith(".") and ". " not in message and len(message) < 600


# --- what a good file says ---


def test_the_real_model_reads_as_gguf_py_reads_it(smollm2_path):
    oracle, ours = GGUFReader(smollm2_path), open_gguf(smollm2_path)
    fields = {key: field for key, field in oracle.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
        assert ours.metadata.value_type(key) == field.types[-1], key
        assert ours.metadata.array_length(key) == (len(field.data) if len(field.types) > 1 else None), key
    assert ours.version == 3
    assert ours.architecture == "llama"
    assert list(ours.tensors) == [t.name for t in oracle.tensors]
    for theirs in oracle.tensors:
        info = ours.tensors[theirs.name]
        assert (info.type, info.offset, info.nbytes) == (theirs.tensor_type, theirs.data_offset, theirs.n_bytes)
        assert list(info.ne) == theirs.shape.tolist()
        assert info.shape == info.ne[::-1]
        assert np.array_equal(ours.raw(info.name), theirs.data.view(np.uint8).reshape(-1)), info.name


def test_every_kind_of_value_is_read(tmp_path):
    file = open_gguf(write(tmp_path, small_file()))
    values = {key: file.metadata[key] for key in file.metadata if key.startswith("a.")}
    assert values == {
        "a.u8": 7,
        "a.i8": -1,
        "a.u16": 65535,
        "a.i16": -300,
        "a.i32": -5,
        "a.f32": 0.25,
        "a.bool": True,
        "a.u64": 2**63,
        "a.i64": -(2**62),
        "a.f64": 1e-300,
        "a.floats": [1.0, 2.0, 3.0],
        "a.none": [],
        "a.tokens": [f"token{i}" for i in range(60)],
        "a.text": "größer 日本",
    }
    assert values["a.bool"] is True
    assert file.metadata.value_type("a.tokens") is ValueType.STRING
    assert file.metadata.value_type("absent") is None
    assert file.metadata.array_length("absent") is None
    assert file.metadata.array_length("a.u8") is None
    assert file.metadata.encoded("a.i16") == struct.pack("<Ih", 3, -300)
    assert file.metadata.encoded("a.floats") == struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3)
    assert "a.u8" in file.metadata
    assert "absent" not in file.metadata
    assert len(file.metadata) == 16


def test_tensors_are_where_the_alignment_puts_them(tmp_path):
    file = open_gguf(write(tmp_path, small_file()))
    assert {i.name: (i.type, i.shape, i.nbytes) for i in file.tensors.values()} == {
        "first.weight": (GgmlType.F32, (4, 8), 128),
        "second.weight": (GgmlType.Q4_0, (3, 32), 54),
        "third.weight": (GgmlType.F16, (100,), 200),
    }
    assert file.raw("first.weight").tobytes() == bytes(range(128))
    assert file.raw("third.weight").tobytes() == bytes(range(200))
    assert file.raw("third.weight").flags.writeable is False


def test_version_2_and_a_string_path_are_accepted(tmp_path):
    path = write(tmp_path, gguf(ARCHITECTURE, version=2))
    assert open_gguf(str(path)).version == 2


def test_a_link_to_a_file_is_followed(tmp_path):
    path = write(tmp_path, gguf(ARCHITECTURE))
    (tmp_path / "link.gguf").symlink_to(path)
    assert open_gguf(tmp_path / "link.gguf").architecture == "llama"


def test_a_file_without_architecture_has_an_empty_one(tmp_path):
    assert open_gguf(write(tmp_path, gguf())).architecture == ""


def test_the_stamp_is_of_the_file_that_was_opened(tmp_path):
    path = write(tmp_path, gguf(ARCHITECTURE))
    status = path.stat()
    assert open_gguf(path).stamp == (status.st_size, status.st_mtime_ns, status.st_ino)


def test_block_sizes_are_those_of_gguf_py():
    for kind in GGMLQuantizationType:
        if kind.name != "Q8_1":  # gguf-py has 40, from before llama.cpp stored its scales as float16 (36)
            ours = BLOCKS[GgmlType[kind.name]]
            assert (GgmlType[kind.name], (ours.elements, ours.nbytes)) == (kind, GGML_QUANT_SIZES[kind])
    assert set(BLOCKS) == set(GgmlType)


# --- broken files, each with the words that its message must have ---

FLOAT = struct.pack("<f", 1.0)

BROKEN: dict[str, tuple[bytes, str]] = {
    # what is no GGUF at all
    "empty": (b"", "is empty"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "2023 format": (b"tjgg\x03\0\0\0" + bytes(40), "before 2023"),
    "zip (PyTorch)": (b"PK\x03\x04" + bytes(40), "PyTorch"),
    "safetensors": (struct.pack("<Q", 20) + b'{"a":{}}' + bytes(20), "safetensors"),
    "escape codes": (b"\x1b[2J" + bytes(40), r"\x1b"),
    # versions
    "version 0": (gguf(version=0), "version 0"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    # counts
    "n_kv 2^63": (gguf(n_kv=2**63), "9223372036854775808 metadata keys"),
    "n_kv 2^64-1": (gguf(n_kv=2**64 - 1), "metadata keys"),
    "n_kv 65537": (gguf(n_kv=65_537), "65537 metadata keys"),
    "n_kv fits, keys absent": (gguf(n_kv=65_536), "metadata key 0"),
    "n_tensors 2^63": (gguf(n_tensors=2**63), "tensors"),
    "n_tensors 65537": (gguf(n_tensors=65_537), "65537 tensors"),
    "n_tensors fits, tensors absent": (gguf(n_tensors=65_536), "tensor 0"),
    # names and strings
    "key 2^64-1 long": (gguf(struct.pack("<Q", 2**64 - 1), n_kv=1), "metadata key 0"),
    "key over the limit": (gguf(u32("k" * 65_536, 1)), "65536 bytes"),
    "key empty": (gguf(u32("", 1)), "metadata key 0"),
    "key with NUL": (gguf(u32("a\0b", 1)), r"a\x00b"),
    "key with escape codes": (gguf(u32("\x1b[31m", 1)), r"\x1b[31m"),
    "key not UTF-8": (gguf(text(b"\xff\xfe", "x")), "not UTF-8"),
    "key twice": (gguf(u32("a", 1), text("a", "x")), "'a' stands in it twice"),
    "string 2^64-1 long": (gguf(pair("a", 8, struct.pack("<Q", 2**64 - 1))), "metadata value a"),
    "string of 1 GiB": (gguf(pair("a", 8, struct.pack("<Q", 2**30))), "1073741824 bytes"),
    "string longer than the file": (gguf(pair("a", 8, struct.pack("<Q", 100) + b"x")), "inside the metadata value a"),
    "string not UTF-8": (gguf(text("a", b"\xc3\x28")), "metadata value a is not UTF-8"),
    # value types
    "value type 13": (gguf(pair("a", 13, bytes(8))), "type 13"),
    "value type 2^32-1": (gguf(pair("a", 2**32 - 1, bytes(8))), "type 4294967295"),
    "element type 13": (gguf(array("a", 13, 1, bytes(8))), "type 13"),
    # arrays
    "2^63 bytes (llama.cpp#27188: gguf-py balloons)": (
        gguf(array("a", 0, 2**63)),
        "claims 9223372036854775808 elements",
    ),
    "2^63 doubles, wrapping to 0": (gguf(array("a", 12, 2**61)), "claims 2305843009213693952 elements"),
    "2^63 strings": (gguf(array("a", 8, 2**63)), "claims 9223372036854775808 elements"),
    "2^24 + 1 elements": (gguf(array("a", 0, 2**24 + 1)), "claims 16777217 elements"),
    "2^24 doubles that do not fit": (gguf(array("a", 12, 2**24)), "inside the metadata array a"),
    "2^24 strings that do not fit": (gguf(array("a", 8, 2**24)), "inside the metadata array a"),
    "strings that do not fit": (gguf(array("a", 8, 2, string("x"))), "inside the metadata array a"),
    "string element 2^64-1 long": (gguf(array("a", 8, 1, struct.pack("<Q", 2**64 - 1))), "inside the metadata array a"),
    "string element 2^64-9 long": (gguf(array("a", 8, 2, struct.pack("<2Q", 2**64 - 9, 0))), "metadata array a"),
    "nested arrays": (gguf(array("a", 9, 1, struct.pack("<IQ", 4, 0))), "array of arrays"),
    "nested arrays, 10000 deep": (gguf(array("a", 9, 1, struct.pack("<IQ", 9, 1) * 10_000)), "array of arrays"),
    # alignment
    "alignment 0": (gguf(u32("general.alignment", 0)), "alignment is 0"),
    "alignment 3": (gguf(u32("general.alignment", 3)), "alignment is 3"),
    "alignment 4": (gguf(u32("general.alignment", 4)), "alignment is 4"),
    "alignment 24": (gguf(u32("general.alignment", 24)), "alignment is 24"),
    "alignment 2^31": (gguf(u32("general.alignment", 2**31)), "alignment is 2147483648"),
    "alignment as text": (gguf(text("general.alignment", "32")), "not of type UINT32"),
    "alignment as UINT64": (gguf(pair("general.alignment", 10, struct.pack("<Q", 32))), "not of type UINT32"),
    "alignment as BOOL": (gguf(pair("general.alignment", 7, b"\x01")), "not of type UINT32"),
    "alignment as array": (gguf(array("general.alignment", 4, 1, struct.pack("<I", 32))), "not of type UINT32"),
    # tensors
    "tensor name of 64 bytes": (gguf(tensors=(tensor("n" * 64, [1]),), data=FLOAT), "64 bytes"),
    "tensor name of 2^64-1 bytes": (gguf(tensors=(struct.pack("<Q", 2**64 - 1),)), "tensor 0"),
    "tensor name empty": (gguf(tensors=(tensor("", [1]),), data=FLOAT), "tensor 0"),
    "tensor name with escape codes": (gguf(tensors=(tensor("\x1b]0;x\x07", [1]),), data=FLOAT), r"\x1b"),
    "tensor name turning text around": (gguf(tensors=(tensor("a\u202eb", [1]),), data=FLOAT), r"\u202e"),
    "tensor name not UTF-8": (gguf(tensors=(tensor(b"\xff", [1]),), data=FLOAT), "not UTF-8"),
    "tensor twice": (gguf(tensors=(tensor("t", [8]), tensor("t", [8], 0, 32)), data=bytes(64)), "t stands in it twice"),
    "0 dimensions": (gguf(tensors=(tensor("t", []),), data=FLOAT), "t has 0 dimensions"),
    "5 dimensions": (gguf(tensors=(tensor("t", [1] * 5),), data=FLOAT), "t has 5 dimensions"),
    "2^32-1 dimensions": (gguf(tensors=(tensor("t", [1], n_dims=2**32 - 1),), data=FLOAT), "4294967295 dimensions"),
    "dimension 0": (gguf(tensors=(tensor("t", [4, 0]),), data=FLOAT), "impossible dimensions [4, 0]"),
    "dimension -1": (gguf(tensors=(tensor("t", [2**64 - 1]),), data=FLOAT), "impossible dimensions"),
    "product 2^64, wrapping to 0": (gguf(tensors=(tensor("t", [2**32, 2**32]),), data=FLOAT), "impossible dimensions"),
    "product 2^65 + 4": (gguf(tensors=(tensor("t", [2**62, 1, 8, 1]),), data=FLOAT), "impossible dimensions"),
    "2^62 elements": (gguf(tensors=(tensor("t", [2**62]),), data=FLOAT), "inside tensor t"),
    "bytes wrap to 0": (gguf(tensors=(tensor("t", [2**31, 2**31 - 1]),), data=FLOAT), "inside tensor t"),
    "rows are no whole blocks": (
        gguf(tensors=(tensor("t", [33, 2], 2),), data=bytes(64)),
        "not a multiple of Q4_0's 32",
    ),
    # offsets
    "offset 32 where 0 is next": (
        gguf(tensors=(tensor("t", [8], 0, 32),), data=bytes(64)),
        "t starts at offset 32, not 0",
    ),
    "overlap": (
        gguf(tensors=(tensor("a", [16]), tensor("b", [8], 0, 32)), data=bytes(128)),
        "b starts at offset 32, not 64",
    ),
    "hole": (
        gguf(tensors=(tensor("a", [8]), tensor("b", [8], 0, 64)), data=bytes(128)),
        "b starts at offset 64, not 32",
    ),
    "misaligned": (
        gguf(tensors=(tensor("a", [1]), tensor("b", [1], 0, 4)), data=bytes(64)),
        "b starts at offset 4, not 32",
    ),
    "offset 2^64-32": (gguf(tensors=(tensor("t", [8], 0, 2**64 - 32),), data=bytes(64)), "not 0"),
    "past the end": (gguf(tensors=(tensor("t", [9]),), data=bytes(35)), "inside tensor t"),
    "no data": (gguf(tensors=(tensor("t", [1]),)), "inside tensor t"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_one_clear_sentence(tmp_path, case):
    data, words = BROKEN[case]
    path = write(tmp_path, data)
    start = time.perf_counter()
    with pytest.raises(FileError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert is_one_sentence(message), message
    assert time.perf_counter() - start < 0.5  # none may loop or allocate by what it claims; most take 1 ms


@pytest.mark.parametrize("number", [4, 5, 31, 36, 37, 38, 43, 99, 2**32 - 1])
def test_an_unknown_tensor_type_names_tensor_and_number(tmp_path, number):
    path = write(tmp_path, gguf(tensors=(tensor("blk.0.ffn_up.weight", [32], number),), data=bytes(64)))
    with pytest.raises(ModelError, match=rf"blk\.0\.ffn_up\.weight has type {number},") as caught:
        open_gguf(path)
    assert is_one_sentence(str(caught.value))


def test_a_string_element_over_the_limit_is_refused_when_asked_for(tmp_path):
    path = tmp_path / "file.gguf"
    length = 16 * 2**20 + 1
    with path.open("wb") as file:
        file.write(gguf(array("a", 8, 1, struct.pack("<Q", length))))
        file.truncate(file.tell() + length)
    with pytest.raises(FileError, match="element 0 of a is longer"):
        open_gguf(path).metadata["a"]


def test_a_string_element_that_is_no_text_is_refused_when_asked_for(tmp_path):
    file = open_gguf(write(tmp_path, gguf(array("a", 8, 2, string("ok") + string(b"\xff")))))
    with pytest.raises(FileError, match="element 1 of a is not UTF-8"):
        file.metadata["a"]


def test_the_largest_values_that_are_allowed_pass(tmp_path):
    names = tensor("n" * 63, [1])
    path = write(tmp_path, gguf(u32("k" * 65_535, 1), u32("general.alignment", 65_536), tensors=(names,), data=b""))
    data = path.read_bytes()
    path.write_bytes(data + bytes(-len(data) % 65_536) + FLOAT)
    assert open_gguf(path).raw("n" * 63).tobytes() == FLOAT


# --- paths that are no file ---


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name, words in {
        "fifo": "not a regular file",
        "loop": "can't be opened",
        "absent": "can't be opened",
        "": "is a folder",
        "file/below": "can't be opened",
        "n" * 300: "can't be opened",
    }.items():
        with pytest.raises(FileError, match=words) as caught:
            open_gguf(tmp_path / name)
        assert is_one_sentence(str(caught.value))
    with pytest.raises(FileError, match="not a regular file"):
        open_gguf("/dev/null")


# --- files that are cut short ---


@pytest.mark.parametrize("length", range(1, 24))
def test_a_file_of_1_to_23_bytes_ends_inside_its_header(tmp_path, length):
    with pytest.raises(FileError, match=f"ends at byte {length}, inside its header;"):
        open_gguf(write(tmp_path, gguf(ARCHITECTURE)[:length]))


def first_missing(data: bytes) -> list[tuple[int, str]]:
    """Where each part of `small_file` ends, found by searching for its bytes, and what a cut before there lacks."""
    ends = [(24, "its header")]
    keys = ["general.architecture", "general.alignment", "a.u8", "a.i8", "a.u16", "a.i16", "a.i32", "a.f32", "a.bool"]
    keys += ["a.u64", "a.i64", "a.f64", "a.floats", "a.none", "a.tokens", "a.text"]
    starts = [data.index(string(key)) for key in keys]
    after = [*starts[1:], data.index(string("first.weight"))]
    for index, (key, start, end) in enumerate(zip(keys, starts, after, strict=True)):
        ends.append((start + 8 + len(key), f"the name of metadata key {index}"))
        ends.append((end, f"the metadata (value|array) {key}"))
    names = ["first.weight", "second.weight", "third.weight"]
    starts = [data.index(string(name)) for name in names]
    header_end = starts[2] + 8 + len(names[2]) + 4 + 8 + 12
    for index, (name, start, end) in enumerate(zip(names, starts, [*starts[1:], header_end], strict=True)):
        ends.append((start + 8 + len(name), f"the name of tensor {index}"))
        ends.append((end, f"the description of tensor {name}"))
    first = len(data) - 192 - 200
    ends += [(first + 128, "tensor first.weight"), (first + 182, "tensor second.weight")]
    return [*ends, (len(data), "tensor third.weight")]


def test_a_file_cut_at_any_byte_names_the_first_missing_thing(tmp_path):
    data = small_file()
    assert 1_500 < len(data) < 4_096
    path = write(tmp_path, data)
    open_gguf(path)  # whole, it is fine
    parts = first_missing(data)
    for length in range(len(data) - 1, 0, -1):
        os.truncate(path, length)
        missing = next(what for end, what in parts if length < end)
        with pytest.raises(FileError, match=f"ends at byte {length}, inside {missing};"):
            open_gguf(path)


def test_the_real_model_cut_anywhere_names_the_first_missing_thing(tmp_path, smollm2_path):
    path = tmp_path / "cut.gguf"
    shutil.copyfile(smollm2_path, path)
    oracle = GGUFReader(smollm2_path)
    ends = [(t.data_offset + t.n_bytes, f"tensor {t.name};") for t in oracle.tensors]
    data_start, size = oracle.data_offset, path.stat().st_size
    draw = random.Random(3)
    cuts = {draw.randrange(data_start, ends[-1][0]) for _ in range(150)} | {
        draw.randrange(1, data_start) for _ in range(49)
    }
    slowest = 0.0
    for length in sorted(cuts | {size - 1}, reverse=True):
        os.truncate(path, length)
        start = time.perf_counter()
        with pytest.raises(FileError, match=f"ends at byte {length}, inside ") as caught:
            open_gguf(path)
        slowest = max(slowest, time.perf_counter() - start)
        if length >= data_start:
            assert next(what for end, what in ends if length < end) in str(caught.value)
    assert slowest < 1.0  # it takes 0.01 s here; the bound is for a loaded machine


# --- files that are damaged at random ---

HEADER_BYTES = len(small_file()) - 192 - 200


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    flips=st.lists(
        st.tuples(st.integers(4, HEADER_BYTES - 1), st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),
        min_size=1,
        max_size=8,
    )
)
def test_random_damage_never_crashes_hangs_or_balloons(tmp_path_factory, flips):
    data = bytearray(small_file())
    for position, byte in flips:
        data[position] = byte
    survives(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(data))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    at=st.integers(8, HEADER_BYTES - 8),
    number=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 33, 2**64 - 8, 2**64 - 1]),
)
def test_a_huge_number_anywhere_never_crashes_hangs_or_balloons(tmp_path_factory, at, number):
    data = bytearray(small_file())
    data[at : at + 8] = struct.pack("<Q", number)
    survives(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(data))


def survives(path: Path, data: bytes) -> None:
    """Everything in the file can be asked for, or there is one GgufloraError; at most 64 MiB and 0.5 s for it."""
    path.write_bytes(data)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        read_everything(path)
    except GgufloraError as error:
        assert is_one_sentence(str(error)), error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.perf_counter() - start < 0.5  # about 1 ms here
    assert peak < 64 * 2**20


def read_everything(path: Path) -> None:
    file = open_gguf(path)
    for key in file.metadata:
        _ = file.metadata[key]
    assert all(file.raw(name).nbytes == info.nbytes for name, info in file.tensors.items())


# --- speed ---


def test_a_vocabulary_of_262k_tokens_opens_fast(tmp_path):
    """As large as Gemma 3's, with 500k merges; arrays are stepped over, not decoded: 0.08 s on 2 slow cores."""
    tokens = b"".join(string(f"token {i}") for i in range(262_144))
    merges = b"".join(string(f"left{i} right{i}") for i in range(500_000))
    path = write(tmp_path, gguf(array("tokens", 8, 262_144, tokens), array("merges", 8, 500_000, merges)))
    fastest = min(timed(lambda: open_gguf(path)) for _ in range(3))
    assert fastest < 1.0  # twelve times what it takes, for a loaded machine; decoding here would take longer
    assert open_gguf(path).metadata["tokens"][-1] == "token 262143"


def timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
