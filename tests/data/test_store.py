"""What comes out of a store is what was written, to the bit; and a file that is not as it was written is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.data.packing import pack
from gguflora.data.store import lengths_of, map_store, open_store, trained_tokens, write_store
from gguflora.errors import FileError
from gguflora.storage import unnamed_file, write_atomically


def encoded(tokens: list[int], trained: list[bool], weight: float = 1.0, source: str = "a:1", *lost: int) -> Encoded:
    ids = np.array(tokens, np.int32)
    return Encoded(ids, np.where(np.array(trained, bool), ids, NOT_TRAINED).astype(np.int32), weight, source, *lost)


SOME = [
    encoded([1, 2, 3], [False, True, True], 0.5),
    encoded(list(range(20)), [n % 3 == 1 for n in range(20)], 1.0, "Zoë.jsonl:7, part 2", 4096, 1, 2),
    encoded([2**31 - 1], [False], 3.0, ""),
]


def stored(path: Path, examples: list[Encoded], notes: bytes = b"") -> Path:
    write_atomically(path, lambda file: write_store(file, iter(examples), lambda: notes))
    return path


def same(one: Encoded, other: Encoded) -> bool:
    return (
        (one.tokens.dtype, one.labels.dtype) == (other.tokens.dtype, other.labels.dtype) == (np.int32, np.int32)
        and np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.labels, other.labels)
        and struct.pack("<d", one.weight) == struct.pack("<d", other.weight)
        and (one.source, one.lost_answers, one.lost_reasoning, one.no_reasoning)
        == (other.source, other.lost_answers, other.lost_reasoning, other.no_reasoning)
    )


@st.composite
def examples(draw: st.DrawFn) -> Encoded:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), max_size=40))
    trained = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    counts = st.integers(0, 4096)
    text = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs too: file names may have them
    weight = draw(st.floats(0, allow_infinity=False))
    return encoded(tokens, trained, weight, draw(text), draw(counts), draw(counts), draw(counts))


@given(st.lists(examples(), max_size=12), st.binary(max_size=20))
def test_any_examples_come_out_as_they_went_in(written: list[Encoded], notes: bytes):
    with unnamed_file() as file:
        write_store(file, iter(written), lambda: notes)
        read = map_store(file, "it")
    assert len(read) == len(written)
    assert read.notes == notes
    assert all(map(same, read, written))
    assert all(same(read[number], written[number]) for number in range(-len(written), len(written)))
    assert lengths_of(read).tolist() == lengths_of(written).tolist() == [len(one.tokens) for one in written]
    assert trained_tokens(read) == trained_tokens(written) == sum((one.labels >= 0).sum() for one in written)


def test_the_record_is_tokens_a_bit_for_each_and_the_source(tmp_path: Path):
    """Bits from the highest on: 011 and five for nothing."""
    data = stored(tmp_path / "store", SOME[:1], b"notes").read_bytes()
    record = bytes.fromhex("01000000 02000000 03000000 60") + b"a:1"
    assert data[64 : 64 + len(record)] == record
    assert data[:8] == b"ggTOKEN2"
    assert data.endswith(struct.pack("<qdiiiHHH", 64, 0.5, 3, 2, 3, 0, 0, 0) + b"notes")


def test_it_is_a_sequence_like_any_other(tmp_path: Path):
    read = open_store(stored(tmp_path / "store", SOME))
    assert [one.source for one in read[1:]] == [one.source for one in SOME[1:]]
    assert read[np.int64(1)].lost_answers == 4096
    with pytest.raises(IndexError):
        read[3]


def test_rows_of_it_are_the_rows_of_the_list(tmp_path: Path):
    read = open_store(stored(tmp_path / "store", SOME))
    for row, other in zip(pack(read, 21), pack(SOME, 21), strict=True):
        assert row.tokens.tolist() == other.tokens.tolist()
        assert row.labels.tolist() == other.labels.tolist()
        assert row.weights.tolist() == other.weights.tolist()
        assert row.examples.tolist() == other.examples.tolist()


def test_an_example_is_its_own_and_outlives_the_store(tmp_path: Path):
    path = stored(tmp_path / "store", SOME)
    one = open_store(path)[0]
    path.unlink()
    one.tokens[0] = 9
    assert one.tokens.tolist() == [9, 2, 3]


def test_every_changed_byte_is_found(tmp_path: Path):
    path = stored(tmp_path / "store", SOME, b"notes")
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FileError, match="store holds no whole set of tokens"):
            open_store(path)
    path.write_bytes(data)
    assert len(open_store(path)) == 3


def test_every_cut_is_found_and_so_is_more_at_the_end(tmp_path: Path):
    path = stored(tmp_path / "store", SOME, b"notes")
    data = path.read_bytes()
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(FileError, match="remove it"):
            open_store(path)
    path.unlink()
    with pytest.raises(FileError, match="can't be read"):
        open_store(path)


def test_labels_that_a_bit_cannot_say_are_refused(tmp_path: Path):
    wrong = Encoded(np.array([1, 2], np.int32), np.array([-100, 3], np.int32), 1.0, "a:1")
    with pytest.raises(ValueError, match=r"a:1: a label is neither its token nor -100"):
        stored(tmp_path / "store", [wrong])
    assert list(tmp_path.iterdir()) == []
