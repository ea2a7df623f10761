"""llama.cpp's working memory for one text: made when first needed, made larger when a text needs more."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.errors import MachineError, UsageError
from gguflora.llamacpp import messages
from gguflora.llamacpp.structures import FLASH_ATTENTION_OFF, GGML_TYPE_F32, Batch, ContextParams

BATCH_TOKENS = 512
"""Tokens that llama.cpp computes at once (its own default of n_ubatch): bounds the memory that logits need."""

_SMALLEST = 512  # tokens


@dataclass(frozen=True)
class ContextSettings:
    """How texts are computed: LlamaModel's arguments, resolved."""

    exact: bool
    length: int | None  # None: grows with the texts
    threads: int


class Context:
    """The one text that a model is reading, and the adapter it reads it with.

    Args:
        library: from `library.load`.
        model: address of the llama_model, which must outlive this.
        settings: how texts are computed.
        vocabulary_size: width of a row of logits.
    """

    def __init__(self, library: c.CDLL, model: int, settings: ContextSettings, vocabulary_size: int) -> None:
        self._library = library
        self._model = model
        self._settings = settings
        self._vocabulary_size = vocabulary_size
        self._address: int | None = None
        self._adapter: tuple[int, float] | None = None
        self.texts_begun = 0
        """Grows whenever the text in memory is dropped, so that who reads on can see that it is still his."""

    def free(self) -> None:
        """Give the memory back; a later text makes it again."""
        if self._address:
            self._library.llama_free(self._address)
            self._address = None

    def use_adapter(self, adapter: tuple[int, float] | None) -> None:
        """Apply this adapter (address, scale) alone, or none; a text read with another one is dropped."""
        self._adapter = adapter
        if self._address:
            self._apply_adapter()
            self._drop_text()

    def read(
        self, ids: npt.NDArray[np.int32], wanted: npt.NDArray[np.bool_], room: int = 0
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
        """Read a text from its start, in batches.

        Args:
            ids: (T,)
            wanted: (T,): True where the logits are wanted.
            room: tokens that may follow through `read_on`.

        Yields:
            Positions, and their logits (positions, V): a view that holds until the next batch.

        Raises:
            UsageError: the text is longer than the context may be.
            MachineError: llama.cpp could not compute, as a rule for lack of memory.
        """
        if len(ids) == 0:
            return
        self._make_room(len(ids) + room)
        self._drop_text()
        for start in range(0, len(ids), BATCH_TOKENS):
            part = slice(start, start + BATCH_TOKENS)
            rows = self.read_on(ids[part], wanted[part])
            if len(rows):
                yield start + np.flatnonzero(wanted[part]), rows

    def read_on(self, ids: npt.NDArray[np.int32], wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Read at most BATCH_TOKENS further tokens of the text.

        Args:
            ids: (T,)
            wanted: (T,): True where the logits are wanted.

        Returns:
            (wanted ones, V): a view that holds until the next call.

        Raises:
            MachineError: llama.cpp could not compute, as a rule for lack of memory.
        """
        marks = wanted.astype(np.int8)
        batch = Batch(
            n_tokens=len(ids),
            token=ids.ctypes.data_as(c.POINTER(c.c_int32)),
            logits=marks.ctypes.data_as(c.POINTER(c.c_int8)),
        )
        messages.forget()
        if self._library.llama_decode(self._address, batch) != 0:
            raise MachineError(f"llama.cpp could not compute {len(ids)} tokens ({messages.reason()}).")
        shape = (int(marks.sum()), self._vocabulary_size)
        if shape[0] == 0:
            return np.empty(shape, np.float32)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._address), shape)

    def _make_room(self, tokens: int) -> None:
        limit = self._settings.length
        if limit and tokens > limit:
            raise UsageError(
                f"{tokens} tokens are more than the context of {limit}: give a larger context_length, or shorten "
                "the text."
            )
        if self._address and tokens <= self._library.llama_n_ctx(self._address):
            return
        self.free()
        # Powers of two, so that ever longer texts make few contexts.
        length = limit or max(_SMALLEST, 1 << (tokens - 1).bit_length())
        messages.forget()
        self._address = self._library.llama_init_from_model(self._model, self._params(length))
        if self._address is None:
            raise MachineError(f"llama.cpp can't make a context of {length} tokens ({messages.reason()}).")
        self._apply_adapter()

    def _params(self, length: int) -> ContextParams:
        params: ContextParams = self._library.llama_context_default_params()
        params.n_ctx = length
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._settings.threads
        if self._settings.exact:
            params.type_k = params.type_v = GGML_TYPE_F32
            params.flash_attn_type = FLASH_ATTENTION_OFF
        return params

    def _apply_adapter(self) -> None:
        applied = [self._adapter] if self._adapter else []
        addresses = (c.c_void_p * 1)(*(address for address, _ in applied))
        scales = (c.c_float * 1)(*(scale for _, scale in applied))
        self._library.llama_set_adapters_lora(self._address, addresses, len(applied), scales)

    def _drop_text(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._address), True)
        self.texts_begun += 1
