"""A base keeps its identity however its file is laid out, loses it with one bit, and is hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import struct

import numpy as np
import pytest
from gguf import GGUFWriter

from gguflora.gguf import identity, identity_of, open_gguf, remembered_paths
from gguflora.gguf.identity import base_hash

WEIGHTS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.weight": np.ones(5, np.float32)}
TOKENIZER = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["x", "y"]}
TEMPLATE = {"tokenizer.chat_template": "{{ messages }}"}


def write(path, weights=None, texts=None, *, alignment=32, reverse=False):
    """A base written by gguf-py."""
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for key, value in (TOKENIZER | TEMPLATE if texts is None else texts).items():
        (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)
    tensors = list((WEIGHTS if weights is None else weights).items())
    for name, values in reversed(tensors) if reverse else tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguflora" / "identity"


@pytest.fixture
def unread(monkeypatch):
    """Called, it makes a further reading of any file's weights fail."""

    def forbid():
        def fail(_gguf):
            raise AssertionError("the weights were read again")

        monkeypatch.setattr(identity, "base_hash", fail)

    return forbid


# --- what the hashes depend on ---


def test_the_hash_is_sha256_over_name_type_dims_and_bytes_in_name_order(tmp_path):
    data = b""
    for name, ne in (("a.weight", (4, 3)), ("b.weight", (5,))):
        data += struct.pack("<Q", len(name)) + name.encode()
        data += struct.pack(f"<II{len(ne)}Q", 0, len(ne), *ne) + WEIGHTS[name].tobytes()
    gguf = write(tmp_path / "base.gguf")
    assert base_hash(gguf) == identity_of(gguf).base == hashlib.sha256(data).hexdigest()


def test_padding_order_and_place_do_not_change_it(tmp_path):
    expected = identity_of(write(tmp_path / "base.gguf"))
    (tmp_path / "elsewhere").mkdir()
    others = [
        write(tmp_path / "padded.gguf", alignment=256),
        write(tmp_path / "reversed.gguf", reverse=True),
        write(tmp_path / "elsewhere" / "x.gguf"),
    ]
    assert list(others[1].tensors) == ["b.weight", "a.weight"]
    assert [identity_of(gguf) for gguf in others] == [expected] * 3


def flipped(values):
    changed = values.copy()
    changed.view(np.uint8).reshape(-1)[-1] ^= 1
    return changed


CHANGES = {
    "one bit": WEIGHTS | {"b.weight": flipped(WEIGHTS["b.weight"])},
    "a name": {"a.weight": WEIGHTS["a.weight"], "c.weight": WEIGHTS["b.weight"]},
    "names swapped": {"b.weight": WEIGHTS["a.weight"], "a.weight": WEIGHTS["b.weight"]},
    "dims": WEIGHTS | {"a.weight": WEIGHTS["a.weight"].reshape(4, 3)},
    "type": WEIGHTS | {"b.weight": WEIGHTS["b.weight"].view(np.int32)},
    "one tensor less": {"a.weight": WEIGHTS["a.weight"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_tensor_changes_it(tmp_path, change):
    before, after = identity_of(write(tmp_path / "a.gguf")), identity_of(write(tmp_path / "b.gguf", CHANGES[change]))
    assert before.base != after.base
    assert (before.tokenizer, before.template) == (after.tokenizer, after.template)


@pytest.mark.parametrize(
    ("texts", "changed"),
    [
        (TOKENIZER | {"tokenizer.chat_template": "{{ other }}"}, {"template"}),
        (TOKENIZER, {"template"}),
        (TOKENIZER | TEMPLATE | {"tokenizer.chat_template.tool_use": "t"}, {"template"}),
        (TOKENIZER | TEMPLATE | {"tokenizer.ggml.tokens": ["x", "z"]}, {"tokenizer"}),
        (TOKENIZER | TEMPLATE | {"tokenizer.ggml.tokens": ["xy", ""]}, {"tokenizer"}),
        (TOKENIZER | TEMPLATE | {"tokenizer.ggml.pre": "smollm"}, {"tokenizer"}),
        (TOKENIZER | TEMPLATE | {"general.name": "another name"}, set()),
        (dict(reversed((TOKENIZER | TEMPLATE).items())), set()),
    ],
)
def test_tokenizer_and_template_have_hashes_of_their_own(tmp_path, texts, changed):
    before, after = identity_of(write(tmp_path / "a.gguf")), identity_of(write(tmp_path / "b.gguf", texts=texts))
    assert {
        field for field in ("base", "tokenizer", "template") if getattr(before, field) != getattr(after, field)
    } == changed


# --- the cache ---


def test_the_second_time_the_weights_are_not_read(tmp_path, unread):
    expected = identity_of(write(tmp_path / "base.gguf"))
    unread()
    assert identity_of(open_gguf(tmp_path / "base.gguf")) == expected


def test_a_link_to_a_known_file_is_known(tmp_path, unread):
    expected = identity_of(write(tmp_path / "base.gguf"))
    (tmp_path / "link.gguf").symlink_to("base.gguf")
    unread()
    assert identity_of(open_gguf(tmp_path / "link.gguf")) == expected


@pytest.mark.parametrize("change", ["touched", "replaced", "longer", "moved"])
def test_a_file_that_may_have_changed_is_read_again(tmp_path, unread, change):
    path = tmp_path / "base.gguf"
    identity_of(write(path))
    status = path.stat()
    if change == "touched":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "replaced":  # same size and time, another inode
        write(tmp_path / "new.gguf", CHANGES["one bit"])
        os.utime(tmp_path / "new.gguf", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new.gguf").replace(path)
    elif change == "longer":
        path.write_bytes(path.read_bytes() + bytes(32))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        path = path.rename(tmp_path / "moved.gguf")
    unread()
    with pytest.raises(AssertionError, match="read again"):
        identity_of(open_gguf(path))


def test_a_file_replaced_after_it_was_opened_does_not_get_the_old_ones_hash(tmp_path):
    old = write(tmp_path / "base.gguf")
    write(tmp_path / "new.gguf", CHANGES["one bit"])
    (tmp_path / "new.gguf").replace(tmp_path / "base.gguf")
    before = identity_of(old)
    after = identity_of(open_gguf(tmp_path / "base.gguf"))
    assert after.base == base_hash(open_gguf(tmp_path / "base.gguf")) != before.base == base_hash(old)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "another file", "base": "00"}', "\x00\xff"])
def test_a_torn_or_foreign_entry_is_ignored_and_written_again(tmp_path, cache, unread, content):
    expected = identity_of(write(tmp_path / "base.gguf"))
    [entry] = cache.iterdir()
    entry.write_text(content, "latin-1")
    assert identity_of(open_gguf(tmp_path / "base.gguf")) == expected
    unread()
    assert identity_of(open_gguf(tmp_path / "base.gguf")) == expected


def test_files_of_a_known_base_are_remembered_while_they_do_not_change(tmp_path):
    one, two = write(tmp_path / "one.gguf"), write(tmp_path / "two.gguf", texts=TOKENIZER)
    other = write(tmp_path / "other.gguf", CHANGES["one bit"])
    base, _, changed = (identity_of(file).base for file in (one, two, other))
    assert sorted(remembered_paths(base)) == [one.path, two.path]
    assert remembered_paths(changed) == [other.path]
    assert remembered_paths("0" * 64) == []
    two.path.unlink()
    status = one.path.stat()
    os.utime(other.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert remembered_paths(base) == [one.path]
    assert remembered_paths(changed) == []


@pytest.mark.parametrize("key", ["", "[]", "{}", "[1]", '["x"]', "[[]]", '["a\\u0000", 1]'])
def test_an_entry_that_names_no_file_is_passed_over(tmp_path, cache, key):
    base = identity_of(write(tmp_path / "base.gguf")).base
    (cache / "foreign.json").write_text(json.dumps({"key": key, "base": base}))
    assert remembered_paths(base) == [tmp_path / "base.gguf"]


def test_a_cache_that_can_not_be_written_does_not_matter(tmp_path, monkeypatch):
    expected = identity_of(write(tmp_path / "base.gguf"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder can't be made below a file, even by root
    for _ in range(2):
        assert identity_of(open_gguf(tmp_path / "base.gguf")) == expected


def test_without_a_home_folder_nothing_is_written_anywhere(tmp_path, monkeypatch):
    gguf = write(tmp_path / "base.gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", homeless)
    monkeypatch.chdir(tmp_path)
    assert identity_of(gguf).base == base_hash(gguf)
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_without_xdg_the_cache_is_in_the_home_folder(tmp_path, monkeypatch):
    gguf = write(tmp_path / "base.gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    identity_of(gguf)
    assert len(list((tmp_path / "home" / ".cache" / "gguflora" / "identity").iterdir())) == 1


def test_the_cache_tells_no_path_in_its_file_names_and_leaves_nothing_half_written(tmp_path, cache):
    identity_of(write(tmp_path / "base.gguf"))
    [entry] = cache.iterdir()
    assert len(entry.name) == 64 + len(".json")
