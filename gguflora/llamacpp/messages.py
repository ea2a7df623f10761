"""What llama.cpp says while it works: nothing is printed, its first error is kept so that ours can give the reason."""

from __future__ import annotations

import ctypes as c

_ERROR = 4  # ggml_log_level in ggml/include/ggml.h

_first_error: list[str] = []


def _keep(level: int, text: bytes, _user_data: int | None) -> None:
    if level == _ERROR and not _first_error:
        _first_error.append(text.decode("utf-8", "replace"))


keep_first_error = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(_keep)
"""Takes one message of llama.cpp (a ggml_log_callback). A module holds it, because C keeps only its address."""


def forget() -> None:
    """Drop what was kept: call it before the operation whose reason may be asked for."""
    _first_error.clear()


def reason() -> str:
    """Give the first error since `forget`, on one line, without llama.cpp's function name and without what ends it."""
    if not _first_error:
        return "it gave no reason"
    line = " ".join(_first_error[0].split())
    function, separator, message = line.partition(": ")
    names_function = bool(separator) and " " not in function
    return (message if names_function else line).rstrip(".:")
