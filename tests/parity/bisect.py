"""Where a forward pass of ours leaves llama.cpp's: every intermediate of both, side by side, in the graph's order.

    python -m tests.parity.bisect MODEL.gguf [ADAPTER.gguf]

prints each with its difference, and names the first that is beyond rounding. llama.cpp tells its intermediates by the
callback that its scheduler offers (ggml_backend_sched_eval_callback in ggml/include/ggml-backend.h), ours by
gguflora/model/trace.py. A model that is not in F32 is dequantised first: llama.cpp rounds what quantised matrices read.
"""

from __future__ import annotations

import ctypes as c
import sys
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gguflora.gguf import GgmlType, GgufFile, open_gguf
from gguflora.llamacpp import LlamaModel
from gguflora.llamacpp.library import load
from gguflora.llamacpp.structures import ContextParams
from gguflora.model import Decoder, logits
from tests.numerics import Floats, finite, relative_difference
from tests.parity.cases import Tokens, adapted, loaded
from tests.rewritten import write_dequantised

Intermediates = dict[str, Floats]
"""(T, values of a token) by name: what bears one name twice is `Qcur-0` before rope and `Qcur-0 after rope`."""

AFTER_ROPE = " after rope"
ROUNDING = 1e-4
"""Relative difference of an intermediate. Correct code gives 1e-6 on tiny models and 4e-6 on SmolLM2; the smallest of
the planted errors 4e-3."""

SAME = {
    "inp_scaled": "embd",  # gemma3.cpp: the scaled embeddings
    "ffn_up_b": "ffn_up",  # build_ffn: with its bias
    "ffn_gate_b": "ffn_gate",
    "ffn_swiglu": "ffn_act",
    "ffn_geglu": "ffn_act",
    "sa_out": "ffn_inp",  # gemma3.cpp
}
"""Where llama.cpp has several names for one thing: each as ours calls it. The last that comes is what is compared."""

_EvalCallback = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)


@dataclass(frozen=True)
class Difference:
    """Relative difference of one intermediate."""

    name: str
    size: float


def first_difference(theirs: Intermediates, ours: Intermediates, bound: float = ROUNDING) -> Difference | None:
    """The first intermediate that differs by more than `bound`; None if all agree."""
    return next((found for found in differences(theirs, ours) if found.size > bound), None)


def differences(theirs: Intermediates, ours: Intermediates) -> Iterator[Difference]:
    """Of every intermediate that both have, in the order of our computation.

    llama.cpp has no name for what attention puts out in some architectures (attn_out).
    """
    for name, mine in ours.items():
        if name in theirs:
            yield Difference(name, relative_difference(mine, theirs[name]))


def our_intermediates(decoder: Decoder, tokens: Tokens) -> Intermediates:
    """Of `tokens` as one document."""
    found: Intermediates = {}

    def collect(name: str, value: Tensor) -> None:
        found[name + AFTER_ROPE if name in found else name] = finite(value.flatten(1), name)

    with torch.no_grad():
        logits(decoder, torch.from_numpy(tokens), torch.arange(len(tokens)), [0, len(tokens)], trace=collect)
    return found


def their_intermediates(llama: LlamaModel, tokens: Tokens, wanted: Container[str]) -> Intermediates:
    """Those that are `wanted`, of `tokens` (at most 512: one batch), with the adapter that is applied."""
    native = load()
    native.ggml_get_name.restype = native.ggml_op_desc.restype = c.c_char_p
    found: Intermediates = {}

    def collect(tensor: int, asks: bool, _data: int | None) -> bool:
        address = c.c_void_p(tensor)
        stem, dash, layer = native.ggml_get_name(address).decode().partition("-")
        name = SAME.get(stem, stem) + dash + layer
        if asks:  # before it computes a node, whether anyone wants to see it
            return name in wanted
        if native.ggml_op_desc(address) == b"ROPE":
            name += AFTER_ROPE
        found[name] = finite(_numbers(native, address).reshape(len(tokens), -1), name)  # of one name the last counts
        return True  # go on

    with _watched(llama, _EvalCallback(collect)):
        llama.logits(tokens)
    return found


def _numbers(native: c.CDLL, address: c.c_void_p) -> npt.NDArray[np.float32]:
    """A node's values, flat."""
    native.ggml_nbytes.restype = c.c_size_t
    assert native.ggml_is_contiguous(address)
    values = np.empty(native.ggml_nbytes(address) // 4, np.float32)
    native.ggml_backend_tensor_get(address, values.ctypes.data_as(c.c_void_p), c.c_size_t(0), c.c_size_t(values.nbytes))
    return values


@contextmanager
def _watched(llama: LlamaModel, callback: Any) -> Iterator[None]:
    """While it lasts, the model's contexts report every node to `callback`."""
    context = llama._context
    plain = context._params

    def watching(length: int) -> ContextParams:
        params = plain(length)
        params.cb_eval = c.cast(callback, c.c_void_p)
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "_params", watching)
        context.free()  # the next text makes a context with it
        yield
        context.free()


def main(model: str, adapter: str | None = None) -> None:
    """Print every intermediate's difference, and the first that is beyond rounding."""
    with tempfile.TemporaryDirectory(prefix="gguflora-bisect-") as folder:
        gguf = _in_f32(open_gguf(Path(model)), Path(folder))
        with LlamaModel(gguf.path, exact=True) as llama:
            decoder = loaded(gguf)
            tokens = np.random.default_rng(0).integers(0, llama.vocabulary_size, 96)
            if adapter:
                llama.set_lora_adapter(llama.load_lora_adapter(adapter))
                decoder = adapted(decoder, Path(adapter), 1.0)
            ours = our_intermediates(decoder, tokens)
            theirs = their_intermediates(llama, tokens, ours)
    for found in differences(theirs, ours):
        print(f"{found.name:24} {found.size:.1e}")
    print("first beyond rounding:", first_difference(theirs, ours))


def _in_f32(gguf: GgufFile, folder: Path) -> GgufFile:
    if all(info.type is GgmlType.F32 for info in gguf.tensors.values()):
        return gguf
    write_dequantised(gguf, folder / "f32.gguf")
    return open_gguf(folder / "f32.gguf")


if __name__ == "__main__":
    main(*sys.argv[1:])
