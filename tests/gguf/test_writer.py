"""What is written reads back the same, with gguf-py as with our reader; a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import os
import struct

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.errors import MachineError
from gguflora.gguf import GgmlType, Tensor, ValueType, f32, open_gguf, write_gguf

KEYS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)


def whole(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


SCALARS = {
    ValueType.UINT8: whole(8, False),
    ValueType.INT8: whole(8, True),
    ValueType.UINT16: whole(16, False),
    ValueType.INT16: whole(16, True),
    ValueType.UINT32: whole(32, False),
    ValueType.INT32: whole(32, True),
    ValueType.UINT64: whole(64, False),
    ValueType.INT64: whole(64, True),
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(st.characters(codec="utf-8"), max_size=30),
}


@st.composite
def values(draw: st.DrawFn) -> tuple[ValueType, object]:
    kind = draw(st.sampled_from(sorted(SCALARS)))
    return kind, draw(SCALARS[kind] | st.lists(SCALARS[kind], max_size=5))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    kind, elements, nbytes = draw(
        st.sampled_from(
            [(GgmlType.F32, 1, 4), (GgmlType.F16, 1, 2), (GgmlType.Q4_0, 32, 18), (GgmlType.Q4_K, 256, 144)]
        )
    )
    blocks = draw(st.integers(1, 5))
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), blocks * elements)
    data = np.frombuffer(
        draw(st.randoms(use_true_random=False)).randbytes(int(np.prod(shape)) // elements * nbytes), np.uint8
    )
    return Tensor(draw(KEYS), kind, shape, data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    metadata=st.dictionaries(KEYS, values(), min_size=1, max_size=8),
    written=st.lists(tensors(), max_size=5, unique_by=lambda t: t.name),
    alignment=st.none() | st.sampled_from([8, 16, 32, 64, 4096]),
)
def test_what_is_written_reads_back_with_gguf_py_and_with_ours(tmp_path_factory, metadata, written, alignment):
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    if alignment:
        metadata |= {"general.alignment": (ValueType.UINT32, alignment)}
    write_gguf(path, metadata, written)
    ours, theirs = open_gguf(path), GGUFReader(path)
    assert list(ours.metadata) == list(metadata)
    assert [key for key in theirs.fields if not key.startswith("GGUF.")] == list(metadata)
    for key, (kind, value) in metadata.items():
        assert ours.metadata.value_type(key) is kind
        assert ours.metadata[key] == value
        if value != []:  # gguf-py has no contents for an empty array
            assert theirs.fields[key].types[-1] == kind
            assert theirs.fields[key].contents() == value
    assert list(ours.tensors) == [t.name for t in theirs.tensors] == [t.name for t in written]
    for tensor, info in zip(written, theirs.tensors, strict=True):
        assert ours.tensors[tensor.name].shape == tensor.shape == tuple(info.shape[::-1].tolist())
        assert ours.tensors[tensor.name].type == tensor.type == info.tensor_type
        assert ours.raw(tensor.name).tobytes() == tensor.data.tobytes() == info.data.tobytes()
        assert info.data_offset % (alignment or 32) == 0


def test_the_bytes_are_those_that_the_format_describes(tmp_path):
    path = tmp_path / "file.gguf"
    write_gguf(path, {"ab": (ValueType.INT16, [-1])}, [f32("t", np.array([[1.5, -2.0]]))])
    header = b"GGUF\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" * 2
    header += b"\x02\0\0\0\0\0\0\0ab" + b"\x09\0\0\0\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\xff\xff"
    header += b"\x01\0\0\0\0\0\0\0t" + b"\x02\0\0\0" + struct.pack("<QQ", 2, 1) + struct.pack("<IQ", 0, 0)
    padding = bytes(-len(header) % 32)
    assert path.read_bytes() == header + padding + struct.pack("<2f", 1.5, -2.0) + bytes(24)


def test_values_of_any_memory_layout_and_precision_become_rows_of_float32(tmp_path):
    path = tmp_path / "file.gguf"
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    write_gguf(path, {}, [f32("t", values.T), f32("s", values[:, ::2])])
    file = open_gguf(path)
    assert file.tensors["t"].shape == (3, 2)
    assert file.raw("t").view("<f4").tolist() == [0, 3, 1, 4, 2, 5]
    assert file.raw("s").view("<f4").tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([f32("n" * 64, np.zeros(1))], "longer than 63"),
        ([f32("ä" * 32, np.zeros(1))], "longer than 63"),
        ([f32("t", np.zeros(1)), f32("t", np.zeros(1))], "same name"),
        ([f32("t", np.zeros(()))], "shape"),
        ([f32("t", np.zeros((1, 1, 1, 1, 1)))], "shape"),
        ([f32("t", np.zeros((2, 0)))], "shape"),
        ([Tensor("t", GgmlType.F32, (3,), np.zeros(8, np.uint8))], "8 bytes"),
        ([Tensor("t", GgmlType.Q4_0, (2, 16), np.zeros(18, np.uint8))], "no whole Q4_0 blocks"),
    ],
)
def test_a_file_that_no_reader_would_take_is_not_written(tmp_path, tensors, words):
    with pytest.raises(ValueError, match=words):
        write_gguf(tmp_path / "file.gguf", {}, tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_the_system_refuses_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file.gguf"
    path.write_bytes(b"old")

    def refuse(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(MachineError, match=r"file\.gguf could not be written: No space left on device"):
        write_gguf(path, {}, [f32("t", np.zeros(4))])
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_over_the_file_that_is_open_leaves_the_open_one_whole(tmp_path):
    """A merge may be written over its base's name: the map still shows the old bytes."""
    path = tmp_path / "file.gguf"
    write_gguf(path, {}, [f32("t", np.ones(4))])
    old = open_gguf(path)
    write_gguf(path, {}, [f32("t", np.zeros(4))])
    assert old.raw("t").view("<f4").tolist() == [1, 1, 1, 1]
    assert open_gguf(path).raw("t").view("<f4").tolist() == [0, 0, 0, 0]
