"""The shared library: found, refused when it is another one, silent, and laid out as structures.py says."""

from __future__ import annotations

import ctypes as c
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gguflora.errors import UsageError
from gguflora.llamacpp import LlamaModel, available, library, messages, structures

ROOT = Path(__file__).parents[2]


# --- the package ---


def test_the_pinned_package_is_the_one_that_the_extra_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["llamacpp"] == [f"xllamacpp=={library.PACKAGE_VERSION}"]
    assert available()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2027.1.1")
    assert not available()
    with pytest.raises(UsageError, match=r"needs xllamacpp 2026\.10\.11549, but 2027\.1\.1 is installed: pip install"):
        library.require_package()


def test_a_build_of_the_pinned_version_for_a_graphics_card_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: f"{library.PACKAGE_VERSION}+cu128")
    assert available()


def test_an_absent_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert not available()
    with pytest.raises(UsageError, match=r"pip install 'gguflora\[llamacpp\]'"):
        library.require_package()


def test_importing_the_room_loads_neither_llama_cpp_nor_torch() -> None:
    code = "import sys, gguflora.llamacpp; print(sorted({'xllamacpp', 'torch'} & set(sys.modules)))"
    assert _python(code) == "[]\n"


def test_nothing_is_printed_even_for_what_is_left_open(tiny_path: Path) -> None:
    """At the end of the process too, where threads of llama.cpp may outlive the interpreter."""
    code = f"""
from gguflora.llamacpp import LlamaModel, LlamaServer
model, server = LlamaModel({str(tiny_path)!r}, threads=1), LlamaServer({str(tiny_path)!r}, threads=1)
print(len(model.logits([5, 6])), len(server.tokenize("hi")))
"""
    assert _python(code) == "2 2\n"


def test_at_the_end_of_the_process_llama_cpp_no_longer_calls_into_python() -> None:
    """What is registered first runs last: after everything of ours was taken down."""
    code = """
import atexit, ctypes as c
found, data = c.c_void_p(), c.c_void_p()
def look():
    library.load().llama_log_get(c.byref(found), c.byref(data))
    print(found.value == ours)
atexit.register(look)
from gguflora.llamacpp import library, messages
library.load()
ours = c.cast(messages.keep_first_error, c.c_void_p).value
look()
"""
    assert _python(code) == "True\nFalse\n"


def _python(code: str) -> str:
    """Run it in a fresh process; whatever it writes to stderr counts as output."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


# --- the layout ---


def test_default_values_lie_where_the_structures_say() -> None:
    """Values from llama_context_default_params and llama_model_default_params in llama.cpp."""
    context = library.load().llama_context_default_params()
    expected = {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_rs_seq": 0,
        "n_outputs_max": 0,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "ctx_type": 0,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "rope_freq_base": 0.0,
        "rope_freq_scale": 0.0,
        "yarn_ext_factor": -1.0,
        "yarn_attn_factor": -1.0,
        "yarn_beta_fast": -1.0,
        "yarn_beta_slow": -1.0,
        "yarn_orig_ctx": 0,
        "defrag_thold": -1.0,
        "cb_eval": None,
        "cb_eval_user_data": None,
        "type_k": structures.GGML_TYPE_F16,
        "type_v": structures.GGML_TYPE_F16,
    }
    assert {name: getattr(context, name) for name in expected} == expected
    model = library.load().llama_model_default_params()
    assert (model.n_gpu_layers, model.split_mode, model.main_gpu) == (-1, 1, 0)
    assert not model.devices and model.kv_overrides is None
    assert (model.vocab_only, model.check_tensors, model.use_extra_bufts) == (False, False, True)


def test_fields_that_are_set_lie_at_the_offsets_measured_on_the_pinned_build() -> None:
    offsets = {"n_ctx": 0, "n_batch": 4, "n_ubatch": 8, "n_threads": 28, "n_threads_batch": 32}
    offsets |= {"flash_attn_type": 52, "cb_eval": 88, "type_k": 104, "type_v": 108}
    assert {name: getattr(structures.ContextParams, name).offset for name in offsets} == offsets
    assert structures.ModelParams.devices.offset == 0
    assert structures.ModelParams.vocab_only.offset == 72
    assert structures.ModelParams.use_extra_bufts.offset == 74
    assert c.sizeof(structures.Batch) == 56


def test_settings_reach_the_context(tiny_path: Path) -> None:
    """llama.cpp's own getters, and its own log, say what it was told."""
    with _log() as lines, LlamaModel(tiny_path, exact=True, context_length=768, threads=3) as model:
        model.logits([5])
        native, address = model._library, model._context._address
        sizes = [native.llama_n_ctx(address), native.llama_n_batch(address), native.llama_n_ubatch(address)]
        threads = [native.llama_n_threads(address), native.llama_n_threads_batch(address)]
    assert sizes == [768, 512, 512]
    assert threads == [3, 3]
    log = " ".join("".join(lines).split())
    assert "flash_attn = disabled" in log
    assert "K (f32)" in log and "V (f32)" in log


def test_the_stock_context_has_a_float16_cache(tiny_path: Path) -> None:
    with _log() as lines, LlamaModel(tiny_path, threads=1) as model:
        model.logits([5])
    log = " ".join("".join(lines).split())
    assert "flash_attn = auto" in log
    assert "K (f16)" in log and "V (f16)" in log


def test_vocab_only_lies_where_it_says(tiny_path: Path) -> None:
    """It is beside use_extra_bufts, which has no visible effect on most machines."""
    native = library.load()
    params = native.llama_model_default_params()
    params.vocab_only = True
    with _log() as lines:
        model = native.llama_model_load_from_file(bytes(tiny_path), params)
        native.llama_model_free(model)
    assert "vocab only - skipping tensors" in "".join(lines)


@contextmanager
def _log() -> Iterator[list[str]]:
    lines: list[str] = []
    keep = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(
        lambda _level, text, _data: lines.append(text.decode("utf-8", "replace"))
    )
    native = library.load()
    native.llama_log_set(c.cast(keep, c.c_void_p), None)
    try:
        yield lines
    finally:
        library.silence(native)


def test_a_build_with_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    native = library.load()
    shifted = native.llama_context_default_params()
    shifted.n_ctx, shifted.n_batch = shifted.n_batch, shifted.n_ubatch
    monkeypatch.setattr(native, "llama_context_default_params", lambda: shifted)
    with pytest.raises(UsageError, match="built with another memory layout"):
        library._check_layout(native)


# --- messages ---


def test_the_reason_is_the_first_error_on_one_line() -> None:
    info, error = 2, 4
    messages.forget()
    messages.keep_first_error(info, b"load: all is well\n", None)
    assert messages.reason() == "it gave no reason"
    messages.keep_first_error(error, b"llama_model_load: error loading model:\n no file.\n", None)
    messages.keep_first_error(error, b"load: failed\n", None)
    assert messages.reason() == "error loading model: no file"
    messages.forget()
    messages.keep_first_error(error, b"a sentence with spaces: kept \xff whole", None)
    assert messages.reason() == "a sentence with spaces: kept \ufffd whole"
    messages.forget()
