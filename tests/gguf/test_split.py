"""A model in parts is the same model as in one file, to us and to llama.cpp; parts that don't fit are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from gguflora.errors import FileError
from gguflora.gguf import GgufFile, Tensor, ValueType, identity, identity_of, open_gguf, write_gguf
from gguflora.gguf.writer import Value
from gguflora.llamacpp import LlamaModel
from tests.tiny import tiny_llama

COUNT = 3
TOKENS = [1, 40, 41, 42, 299]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return open_gguf(tiny_llama(tmp_path_factory.mktemp("whole") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def split_keys(number: int, count: int, total: int) -> dict[str, Value]:
    """The three keys, in the types that llama.cpp's gguf-split gives them (tools/gguf-split/gguf-split.cpp:243)."""
    return {
        "split.no": (ValueType.UINT16, number),
        "split.count": (ValueType.UINT16, count),
        "split.tensors.count": (ValueType.INT32, total),
    }


def part_name(number: int, count: int = COUNT, stem: str = "tiny") -> str:
    """By hand from llama.cpp's "%s-%05d-of-%05d.gguf"."""
    return f"{stem}-0000{number + 1}-of-0000{count}.gguf"


def tensors_of(whole: GgufFile, names: Sequence[str]) -> list[Tensor]:
    return [Tensor(name, whole.tensors[name].type, whole.tensors[name].shape, whole.raw(name)) for name in names]


def typed(gguf: GgufFile) -> dict[str, Value]:
    pairs = {key: (gguf.metadata.value_type(key), gguf.metadata[key]) for key in gguf.metadata}
    return {key: (kind, value) for key, (kind, value) in pairs.items() if kind is not None}


def in_thirds(whole: GgufFile) -> list[list[str]]:
    names = list(whole.tensors)
    return [names[:5], names[5:20], names[20:]]


def write_parts(folder: Path, whole: GgufFile, names: Sequence[Sequence[str]]) -> Path:
    """Write `whole` in parts with these tensors; gives the first's path."""
    for number, part in enumerate(names):
        metadata = (typed(whole) if number == 0 else {}) | split_keys(number, len(names), len(whole.tensors))
        write_gguf(folder / part_name(number, len(names)), metadata, tensors_of(whole, part))
    return folder / part_name(0, len(names))


def assert_same_model(parts: GgufFile, whole: GgufFile) -> None:
    assert identity_of(parts) == identity_of(whole)
    assert sorted(parts.tensors) == sorted(whole.tensors)
    for name, info in whole.tensors.items():
        assert (parts.tensors[name].type, parts.tensors[name].shape) == (info.type, info.shape)
        assert np.array_equal(parts.raw(name), whole.raw(name)), name
    assert {key: parts.metadata[key] for key in whole.metadata} == dict(whole.metadata)


# --- parts that make one model ---


def test_a_model_in_parts_is_the_same_model(tmp_path, whole):
    parts = open_gguf(write_parts(tmp_path, whole, in_thirds(whole)))
    assert_same_model(parts, whole)
    paths = [tmp_path / part_name(number) for number in range(COUNT)]
    assert parts.path == paths[0]
    assert [part.path for part in parts.parts] == paths
    for path, names in zip(paths, in_thirds(whole), strict=True):
        assert {parts.path_of(name) for name in names} == {path}
    assert parts.file_bytes == sum(path.stat().st_size for path in paths)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), count=st.integers(2, 5))
def test_whatever_tensor_lies_in_whatever_part_it_is_the_same_model(tmp_path_factory, whole, data, count):
    """Parts without a tensor included: gguf-split writes such a first one with --no-tensor-first-split."""
    places = data.draw(st.lists(st.integers(0, count - 1), min_size=len(whole.tensors), max_size=len(whole.tensors)))
    names = [[name for name, place in zip(whole.tensors, places, strict=True) if place == n] for n in range(count)]
    parts = open_gguf(write_parts(tmp_path_factory.mktemp("parts"), whole, names))
    assert identity.base_hash(parts) == identity.base_hash(whole)
    assert len(parts.parts) == count


@pytest.mark.parametrize("small_first", [False, True])
def test_what_gguf_py_splits_is_the_same_model(tmp_path, whole, small_first):
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama", split_max_tensors=12, small_first_shard=small_first)
    for key, (kind, value) in typed(whole).items():
        if key != "general.architecture":
            add = writer.add_array if isinstance(value, list) else getattr(writer, f"add_{kind.name.lower()}")
            add(key, value)
    for name, info in whole.tensors.items():
        writer.add_tensor(name, whole.raw(name).view(np.float32).reshape(info.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    parts = open_gguf(tmp_path / names[0])
    assert [part.path.name for part in parts.parts] == names
    assert len(names) == 3 + small_first
    assert identity.base_hash(parts) == identity.base_hash(whole)


def test_llama_cpp_loads_the_parts_as_the_same_model(tmp_path, whole):
    """So the keys, their types and the names are its own."""
    logits = []
    for path in (whole.path, write_parts(tmp_path, whole, in_thirds(whole))):
        with LlamaModel(path, exact=True, threads=1) as model:
            logits.append(model.logits(np.array(TOKENS)))
    assert np.isfinite(logits[0]).all()
    assert np.array_equal(*logits)


def test_links_to_parts_are_followed_by_their_own_names(tmp_path, whole):
    """As the Hugging Face cache has them: each a link to a file named by a hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_parts(tmp_path / "blobs", whole, in_thirds(whole))
    for number in range(COUNT):
        blob = (tmp_path / "blobs" / part_name(number)).rename(tmp_path / "blobs" / f"{number:064x}")
        (tmp_path / "snapshot" / part_name(number)).symlink_to(blob)
    assert_same_model(open_gguf(tmp_path / "snapshot" / part_name(0)), whole)


def test_a_split_into_one_is_an_ordinary_file_of_any_name(tmp_path, whole):
    """llama.cpp reads no further key then (src/llama-model-loader.cpp:599)."""
    write_gguf(tmp_path / "a.gguf", typed(whole) | split_keys(0, 1, 7), tensors_of(whole, list(whole.tensors)))
    assert_same_model(open_gguf(tmp_path / "a.gguf"), whole)


def test_a_changed_part_changes_the_identity_though_the_first_part_stayed(tmp_path, whole):
    """The hash is cached by size, time and inode of all parts, not of the first alone."""
    first = write_parts(tmp_path, whole, in_thirds(whole))
    before = identity_of(open_gguf(first))
    last = tmp_path / part_name(2)
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    status = last.stat()
    last.write_bytes(data)
    os.utime(last, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = identity_of(open_gguf(first))
    assert before.base != after.base
    assert (before.tokenizer, before.template) == (after.tokenizer, after.template)


# --- parts that don't ---


def rewritten(number: int, **changes: Any) -> Callable[[Path, GgufFile], None]:
    """Part `number` written again with other keys; None leaves one out."""

    def harm(folder: Path, whole: GgufFile) -> None:
        keys = (typed(whole) if number == 0 else {}) | split_keys(number, COUNT, len(whole.tensors))
        keys |= {key.replace("__", "."): value for key, value in changes.items()}
        kept = {key: value for key, value in keys.items() if value}
        write_gguf(folder / part_name(number), kept, tensors_of(whole, in_thirds(whole)[number]))

    return harm


def swapped(folder: Path, _: GgufFile) -> None:
    second, third = folder / part_name(1), folder / part_name(2)
    second.rename(folder / "second")
    third.rename(second)
    (folder / "second").rename(third)


def with_other_tensors(number: int, take: slice) -> Callable[[Path, GgufFile], None]:
    """Part `number` as of another model that was cut elsewhere."""

    def harm(folder: Path, whole: GgufFile) -> None:
        keys = split_keys(number, COUNT, len(whole.tensors))
        write_gguf(folder / part_name(number), keys, tensors_of(whole, list(whole.tensors)[take]))

    return harm


def u16(value: int) -> Value:
    return ValueType.UINT16, value


def i32(value: int) -> Value:
    return ValueType.INT32, value


# What is done to the parts; the part that the message must name first; words of it; whether llama.cpp refuses it too.
HARMS: dict[str, tuple[Callable[[Path, GgufFile], object], int, str, bool]] = {
    "second missing": (lambda f, _: (f / part_name(1)).unlink(), 1, "is missing", True),
    "last missing": (lambda f, _: (f / part_name(2)).unlink(), 2, "is missing", True),
    "out of order": (swapped, 1, "it is part 3, not 2", True),
    "first part twice": (lambda f, _: shutil.copy(f / part_name(0), f / part_name(1)), 1, "it is part 1, not 2", True),
    "a whole model as a part": (lambda f, w: shutil.copy(w.path, f / part_name(1)), 1, "it has no split.no", True),
    "another count": (rewritten(1, split__count=u16(4)), 1, "its split.count is '4', not '3'", False),
    "another total": (rewritten(2, split__tensors__count=i32(40)), 2, "its split.tensors.count is '40', not", False),
    "another architecture": (
        rewritten(2, general__architecture=(ValueType.STRING, "\x1b[2Jqwen3")),
        2,
        r"its general.architecture is '\x1b[2Jqwen3', not 'llama'",
        False,
    ),
    "a tensor twice": (
        with_other_tensors(2, slice(19, None)),
        2,
        "blk.1.ffn_down.weight stands in an earlier part too",
        True,
    ),
    "too few tensors": (with_other_tensors(2, slice(21, None)), 0, "28 tensors, but split.tensors.count is 29", True),
    "wrong total in the first": (rewritten(0, split__tensors__count=i32(30)), 1, "count is '29', not '30'", True),
    "no total": (rewritten(0, split__tensors__count=None), 0, "count is missing or not of type INT32", True),
    "no number in the first": (rewritten(0, split__no=None), 0, "split.no is missing or not of type UINT16", True),
    "a count of another type": (
        rewritten(0, split__count=(ValueType.UINT32, 3)),
        0,
        "split.count is missing or not of type UINT16",
        True,
    ),
    "a count as a list": (rewritten(0, split__count=(ValueType.UINT16, [3])), 0, "not of type UINT16", True),
    "a number past the count": (rewritten(0, split__no=u16(3)), 0, "it is part 4 of 3", True),
    "a count that the name lacks": (rewritten(0, split__count=u16(65535)), 0, "found by their names alone", True),
    "a part cut short": (
        lambda f, _: os.truncate(f / part_name(2), (f / part_name(2)).stat().st_size - 100),
        2,
        "is cut short",
        True,
    ),
    "a part that is no GGUF": (lambda f, _: (f / part_name(1)).write_bytes(b"<html>"), 1, "is not a GGUF file", True),
    "a part that is a folder": (
        lambda f, _: ((f / part_name(1)).unlink(), (f / part_name(1)).mkdir()),
        1,
        "is a folder",
        True,
    ),
}


def refusal(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.endswith(".")
    assert message.isprintable()
    assert ". " not in message
    return message


@pytest.mark.parametrize("harm", HARMS)
def test_parts_that_do_not_fit_are_refused_naming_the_part(tmp_path, whole, harm):
    """By us always; by llama.cpp too, but where it takes what is clearly another model's part."""
    do, named, words, llama_cpp_too = HARMS[harm]
    first = write_parts(tmp_path, whole, in_thirds(whole))
    do(tmp_path, whole)
    message = refusal(first)
    assert message.startswith(str(tmp_path / part_name(named)))
    assert words in message
    if llama_cpp_too:
        with pytest.raises(FileError, match=r"llama\.cpp can't load"):
            LlamaModel(first, exact=True, threads=1)
    else:
        LlamaModel(first, exact=True, threads=1).close()


@pytest.mark.parametrize("number", [1, 2])
def test_another_part_than_the_first_is_refused_naming_the_first(tmp_path, whole, number):
    first = write_parts(tmp_path, whole, in_thirds(whole))
    path = tmp_path / part_name(number)
    assert refusal(path) == f"{path} is part {number + 1} of 3: give the first, {first.name}."
    with pytest.raises(FileError, match=r"llama\.cpp can't load"):
        LlamaModel(path, exact=True, threads=1)


def test_a_renamed_other_part_is_refused_too(tmp_path, whole):
    write_parts(tmp_path, whole, in_thirds(whole))
    path = (tmp_path / part_name(1)).rename(tmp_path / "model.gguf")
    assert refusal(path) == f"{path} is part 2 of 3: give the first, NAME-00001-of-00003.gguf."


@pytest.mark.parametrize("name", ["model.gguf", "tiny-00001-of-00004.gguf", "tiny-1-of-3.gguf", "tiny-00001-of-00003"])
def test_a_first_part_with_another_name_is_refused_saying_the_name(tmp_path, whole, name):
    """The others can't be found from it, by llama.cpp no more than by us."""
    path = write_parts(tmp_path, whole, in_thirds(whole)).rename(tmp_path / name)
    assert "call it NAME-00001-of-00003.gguf" in refusal(path)
    with pytest.raises(FileError, match=r"llama\.cpp can't load"):
        LlamaModel(path, exact=True, threads=1)
