"""llama.cpp as a shared library: found, checked and declared once.

The package xllamacpp holds the whole of llama.cpp in one extension module whose C functions are open to ctypes. That
is not a promise of its makers, so one version is pinned, another is refused, and the layout of the structures is
compared with llama.cpp's own defaults before the first use.
"""

from __future__ import annotations

import ctypes as c
import functools
import importlib.metadata
import importlib.util
import os
import weakref
from pathlib import Path

from gguflora.errors import UsageError
from gguflora.llamacpp.messages import keep_first_error
from gguflora.llamacpp.structures import (
    FLASH_ATTENTION_AUTO,
    GGML_TYPE_F16,
    Batch,
    ContextParams,
    ModelParams,
)

PACKAGE_VERSION = "2026.10.11549"
"""The xllamacpp release whose structures are described in structures.py (llama.cpp b11549)."""

INSTALL_COMMAND = "pip install 'gguflora[llamacpp]'"

_Int32s = c.POINTER(c.c_int32)
_Floats = c.POINTER(c.c_float)

# name: (result, arguments), as in include/llama.h. Pointers to llama.cpp's own objects are plain addresses.
_FUNCTIONS = {
    "llama_log_set": (None, (c.c_void_p, c.c_void_p)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_model_load_from_file": (c.c_void_p, (c.c_char_p, ModelParams)),
    "llama_model_free": (None, (c.c_void_p,)),
    "llama_model_get_vocab": (c.c_void_p, (c.c_void_p,)),
    "llama_context_default_params": (ContextParams, ()),
    "llama_init_from_model": (c.c_void_p, (c.c_void_p, ContextParams)),
    "llama_free": (None, (c.c_void_p,)),
    "llama_get_memory": (c.c_void_p, (c.c_void_p,)),
    "llama_memory_clear": (None, (c.c_void_p, c.c_bool)),
    "llama_decode": (c.c_int32, (c.c_void_p, Batch)),
    "llama_get_logits": (_Floats, (c.c_void_p,)),
    "llama_n_ctx": (c.c_uint32, (c.c_void_p,)),
    "llama_n_batch": (c.c_uint32, (c.c_void_p,)),
    "llama_n_ubatch": (c.c_uint32, (c.c_void_p,)),
    "llama_n_threads": (c.c_int32, (c.c_void_p,)),
    "llama_n_threads_batch": (c.c_int32, (c.c_void_p,)),
    "llama_adapter_lora_init": (c.c_void_p, (c.c_void_p, c.c_char_p)),
    "llama_adapter_lora_free": (None, (c.c_void_p,)),
    "llama_set_adapters_lora": (c.c_int32, (c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t, _Floats)),
    "llama_tokenize": (
        c.c_int32,
        (c.c_void_p, c.c_char_p, c.c_int32, _Int32s, c.c_int32, c.c_bool, c.c_bool),
    ),
    "llama_token_to_piece": (
        c.c_int32,
        (c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool),
    ),
    "llama_vocab_n_tokens": (c.c_int32, (c.c_void_p,)),
    "llama_vocab_is_eog": (c.c_bool, (c.c_void_p, c.c_int32)),
}


def available() -> bool:
    """Whether the pinned llama.cpp package is installed; costs no import of it."""
    return installed_version() == PACKAGE_VERSION


@functools.cache
def load() -> c.CDLL:
    """llama.cpp, ready to be called: quiet, with the functions used here declared.

    Raises:
        UsageError: the package is absent, is another version, or was built with another layout.
    """
    require_package()
    # Without it an abort first runs gdb on this process (ggml_print_backtrace in ggml/src/ggml.c).
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    library = c.CDLL(str(_shared_object()))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _check_layout(library)
    silence(library)
    # A native thread may still log while the interpreter is taken down, and must not call into Python then. As the
    # first finalizer made here it is the last to run: models and servers that are still open go before it.
    weakref.finalize(library, library.llama_log_set, None, None)
    library.llama_backend_init()
    return library


def silence(library: c.CDLL) -> None:
    """Send llama.cpp's messages to `messages`, not to the terminal."""
    library.llama_log_set(c.cast(keep_first_error, c.c_void_p), None)


def require_package() -> None:
    """Check that the pinned package is installed.

    Raises:
        UsageError: it is absent, or is another version.
    """
    installed = installed_version()
    if installed is None:
        raise UsageError(f"This needs llama.cpp, which is not installed: {INSTALL_COMMAND}.")
    if installed != PACKAGE_VERSION:
        raise UsageError(f"This needs xllamacpp {PACKAGE_VERSION}, but {installed} is installed: {INSTALL_COMMAND}.")


def installed_version() -> str | None:
    """Version of the package that is installed, pinned or not; None where it is absent."""
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None
    # Builds for a graphics card may carry a local label (+cu128); the sources are the same.
    return version.partition("+")[0]


def _shared_object() -> Path:
    spec = importlib.util.find_spec("xllamacpp")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            return file
    raise UsageError(
        "The installed xllamacpp holds no shared library that gguflora can call on this system: "
        "use Linux or macOS, where it does."
    )


def _check_layout(library: c.CDLL) -> None:
    context = library.llama_context_default_params()
    model = library.llama_model_default_params()
    found = (
        (context.n_ctx, context.n_batch, context.n_ubatch),
        (context.n_threads, context.n_threads_batch, context.flash_attn_type),
        (context.type_k, context.type_v),
        (model.vocab_only, model.check_tensors, model.use_extra_bufts),
    )
    # llama_context_default_params in src/llama-context.cpp, llama_model_default_params in src/llama-model.cpp;
    # 4 is GGML_DEFAULT_N_THREADS in ggml/include/ggml.h.
    expected = (
        (512, 2048, 512),
        (4, 4, FLASH_ATTENTION_AUTO),
        (GGML_TYPE_F16, GGML_TYPE_F16),
        (False, False, True),
    )
    if found != expected:
        raise UsageError(
            f"The installed xllamacpp {PACKAGE_VERSION} was built with another memory layout than the one "
            f"gguflora knows: install the package from the usual index again with {INSTALL_COMMAND}."
        )
