"""A GGUF in llama.cpp: adapters on and off, tokens, logits, losses, generation.

The five verbs of the specification are here: load_lora_adapter, set_lora_adapter, generate, remove_lora_adapter,
free_lora_adapter. A model is for one thread; two models may work side by side.
"""

from __future__ import annotations

import ctypes as c
import math
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from gguflora.errors import FileError, UsageError
from gguflora.llamacpp import messages
from gguflora.llamacpp.context import Context, ContextSettings
from gguflora.llamacpp.library import load
from gguflora.llamacpp.vocabulary import Tokens, Vocabulary

NOT_TRAINED = -100
"""The label of a token that takes no part in the loss."""

_NO_DEVICES = (c.c_void_p * 1)(None)  # an empty list: everything stays on the processor


@dataclass(frozen=True, eq=False)
class AdapterHandle:
    """One adapter that a model holds in memory. Two loads of one file are two handles."""

    path: Path


class LlamaModel:
    """A GGUF loaded by llama.cpp, closed by `close`, by leaving a `with` block, or with its last reference.

    Args:
        path: the GGUF; for a file in parts, the first part.
        exact: compute on the processor with a float32 cache and without flash attention, as parity needs it; else
            llama-server's own defaults (float16 cache, flash attention where the model allows it, a GPU if the
            package has one).
        context_length: tokens that the model is set up for; longer input is refused. Without it the context grows
            with the input. Give it for a model with long-context rope factors (longrope): its logits depend on it.
        threads: processor cores to use; without it, those that this process may use. llama.cpp's threads wait for
            each other without sleeping: on a machine that is busy with other work, fewer are much faster.

    Raises:
        UsageError: the llama.cpp package is absent or another version; an argument is out of range.
        FileError: llama.cpp can't load the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        exact: bool = False,
        context_length: int | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("context_length", context_length), ("threads", threads)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")
        self.path = Path(path)
        self._library = load()
        self._model = _load_model(self._library, self.path, exact)
        self._vocabulary = Vocabulary(self._library, self._model)
        settings = ContextSettings(exact, context_length, threads or usable_cores())
        self._context = Context(self._library, self._model, settings, self._vocabulary.size)
        self._adapters: dict[AdapterHandle, int] = {}
        self._applied: AdapterHandle | None = None
        self._release = weakref.finalize(self, _free, self._library, self._model, self._context)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are: V, the width of a row of logits."""
        return self._vocabulary.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give all memory back, adapters included; a second call does nothing."""
        self._release()

    # --- adapters ---

    def load_lora_adapter(self, path: str | Path) -> AdapterHandle:
        """Read an adapter GGUF into memory; `set_lora_adapter` puts it to use.

        llama.cpp checks less than it should and aborts on some wrong files (an adapter of a tied token_embd,
        experts of another count): give it files that gguflora wrote or checked.

        Raises:
            FileError: llama.cpp refuses the file; the message has its reason.
            UsageError: the model is closed.
        """
        self._require_open()
        messages.forget()
        address = self._library.llama_adapter_lora_init(self._model, os.fsencode(path))
        if address is None:
            raise FileError(
                f"llama.cpp can't load the adapter {path} ({messages.reason()}): "
                f"give an adapter that was trained on {self.path}."
            )
        handle = AdapterHandle(Path(path))
        self._adapters[handle] = address
        return handle

    def set_lora_adapter(self, handle: AdapterHandle, scale: float = 1.0) -> None:
        """Apply this adapter, in place of any other, from the next call on.

        Args:
            handle: from `load_lora_adapter` of this model.
            scale: multiplies the adapter's own alpha / rank. At 0 llama.cpp leaves the adapter out of the graph
                (llama_context::set_adapters_lora in src/llama-context.cpp), so the base's logits come back bit for
                bit, as after `remove_lora_adapter`.

        Raises:
            UsageError: the handle was freed or belongs to another model; the scale is not finite; the model is
                closed.
        """
        address = self._address_of(handle)
        if not math.isfinite(scale):
            raise UsageError(f"The scale of an adapter must be a finite number, not {scale}.")
        self._applied = handle
        self._context.use_adapter((address, scale))

    def remove_lora_adapter(self, handle: AdapterHandle) -> None:
        """Stop applying this adapter; it stays loaded. Nothing happens when it is not applied.

        Raises:
            UsageError: the handle was freed or belongs to another model; the model is closed.
        """
        self._address_of(handle)
        if self._applied is handle:
            self._applied = None
            self._context.use_adapter(None)

    def free_lora_adapter(self, handle: AdapterHandle) -> None:
        """Stop applying this adapter and give its memory back; the handle is of no use afterwards.

        Raises:
            UsageError: the handle was freed before or belongs to another model; the model is closed.
        """
        self.remove_lora_adapter(handle)
        self._library.llama_adapter_lora_free(self._adapters.pop(handle))

    # --- text and tokens ---

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into tokens, as llama.cpp does.

        Args:
            text: text, or its UTF-8 bytes.
            add_special: add BOS and EOS where the model's file asks for them.
            parse_special: read special tokens written in the text (`<|im_end|>`) as these tokens.

        Raises:
            UsageError: the model is closed.
        """
        self._require_open()
        data = text.encode() if isinstance(text, str) else text
        return self._vocabulary.tokenize(data, add_special, parse_special)

    def token_bytes(self, token: int, *, special: bool = True) -> bytes:
        """Give the bytes of one token; without `special` a control token has none.

        Raises:
            UsageError: the token is not in the vocabulary; the model is closed.
        """
        self._require_open()
        self._vocabulary.checked([token])
        return self._vocabulary.piece(token, special)

    def detokenize(self, tokens: Tokens, *, special: bool = True) -> str:
        """Join the bytes of the tokens and read them as UTF-8; cut-off characters become U+FFFD.

        A SentencePiece model begins a text with a space that its tokenizer put there: it is kept.

        Raises:
            UsageError: a token is not in the vocabulary; the model is closed.
        """
        pieces = [self.token_bytes(int(token), special=special) for token in tokens]
        return b"".join(pieces).decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether generation stops at this token (end of text, of turn, ...).

        Raises:
            UsageError: the token is not in the vocabulary; the model is closed.
        """
        self._require_open()
        self._vocabulary.checked([token])
        return self._vocabulary.ends_generation(token)

    # --- what the model computes ---

    def logits(self, tokens: Tokens, wanted: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
        """Compute the logits of one text.

        Args:
            tokens: (T,)
            wanted: (T,), True at the positions whose logits are wanted; all are without it.

        Returns:
            (T, V), or (wanted ones, V): the row of position t scores the token that follows tokens[: t + 1].

        Raises:
            UsageError: a token is not in the vocabulary; the text is longer than context_length; the model is
                closed.
            MachineError: llama.cpp could not compute, as a rule for lack of memory.
        """
        self._require_open()
        ids = self._vocabulary.checked(tokens)
        asked = np.ones(len(ids), bool) if wanted is None else wanted
        parts = [rows.copy() for _, rows in self._context.read(ids, asked)]  # a view lasts until the next batch
        return np.concatenate([np.empty((0, self.vocabulary_size), np.float32), *parts])

    def nll(self, tokens: Tokens, labels: Tokens) -> npt.NDArray[np.float64]:
        """Compute the negative log-likelihood of each trained token, in the order of the text.

        Args:
            tokens: (T,)
            labels: (T,): labels[t] is tokens[t] where that token is trained, scored by the logits at t - 1; -100
                elsewhere. The first token has nothing before it and can't be trained.

        Returns:
            (number of trained tokens,) in nats; the log-softmax is computed in float64.

        Raises:
            UsageError: labels don't fit tokens; otherwise as `logits`.
            MachineError: as `logits`.
        """
        self._require_open()
        ids = self._vocabulary.checked(tokens)
        trained = np.flatnonzero(_checked_labels(ids, labels))
        if len(trained) == 0:
            return np.empty(0)
        wanted = np.zeros(trained[-1], bool)
        wanted[trained - 1] = True
        losses = [
            _cross_entropy(row, ids[position + 1])
            for positions, rows in self._context.read(ids[: trained[-1]], wanted)
            for position, row in zip(positions, rows, strict=True)
        ]
        return np.array(losses)

    def generate(
        self,
        prompt_tokens: Tokens,
        max_tokens: int,
        *,
        stop_ids: Sequence[int] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Continue a text until an end-of-generation token, one of `stop_ids`, or `max_tokens` new tokens.

        Args:
            prompt_tokens: (T,), at least one.
            max_tokens: most tokens to add; the context must hold the prompt and them.
            stop_ids: further tokens to stop at.
            temperature: 0 takes the most likely token each time; above 0 draws from softmax(logits / temperature).
            seed: decides the draws.

        Returns:
            The new tokens, without the one that stopped it.

        Raises:
            UsageError: an argument is out of range; otherwise as `logits`.
            MachineError: as `logits`.
        """
        return list(self.stream(prompt_tokens, max_tokens, stop_ids=stop_ids, temperature=temperature, seed=seed))

    def stream(
        self,
        prompt_tokens: Tokens,
        max_tokens: int,
        *,
        stop_ids: Sequence[int] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """As `generate`, one token at a time; errors appear with the first one.

        Raises:
            UsageError: as `generate`, or the model was used for something else between two tokens.
            MachineError: as `logits`.
        """
        self._require_open()
        prompt = self._vocabulary.checked(prompt_tokens)
        if len(prompt) == 0:
            raise UsageError("The prompt is empty: generation needs at least one token to start from.")
        if max_tokens < 0 or not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"max_tokens and temperature must be 0 or more, not {max_tokens} and {temperature}.")
        draws = np.random.default_rng(seed)
        is_last = np.arange(len(prompt)) == len(prompt) - 1
        ((_, rows),) = self._context.read(prompt, is_last, room=max_tokens)
        text = self._context.texts_begun
        for left in reversed(range(max_tokens)):
            token = _choose(rows[0], temperature, draws)
            if token in stop_ids or self._vocabulary.ends_generation(token):
                return
            yield token
            if left:
                rows = self._read_on(token, text)

    # --- inside ---

    def _require_open(self) -> None:
        if not self._release.alive:
            raise UsageError(f"The model {self.path} is closed: load it again.")

    def _address_of(self, handle: AdapterHandle) -> int:
        self._require_open()
        if handle not in self._adapters:
            raise UsageError(
                f"The adapter {handle.path} is not in this model: it was freed, or loaded by another model; "
                "load it again."
            )
        return self._adapters[handle]

    def _read_on(self, token: int, text: int) -> npt.NDArray[np.float32]:
        self._require_open()
        if self._context.texts_begun != text:
            raise UsageError(
                "The model was used for something else during a stream: finish the stream first, or load the model "
                "twice."
            )
        return self._context.read_on(np.array([token], np.int32), np.ones(1, bool))


def _load_model(library: c.CDLL, path: Path, exact: bool) -> int:
    params = library.llama_model_default_params()
    # Repacked weights crash at the first decode on processors with AMX.
    params.use_extra_bufts = False
    if exact:
        params.devices = _NO_DEVICES
    messages.forget()
    model: int | None = library.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        raise FileError(f"llama.cpp can't load {path} ({messages.reason()}): check the file, or take a newer one.")
    return model


def _free(library: c.CDLL, model: int, context: Context) -> None:
    """Free the context before what it points to; adapters that are still loaded are freed with the model."""
    context.free()
    library.llama_model_free(model)


def _checked_labels(ids: npt.NDArray[np.int32], labels: Tokens) -> npt.NDArray[np.bool_]:
    """Give which tokens are trained."""
    given = np.asarray(labels)
    if given.shape != ids.shape:
        raise UsageError(f"There are {given.size} labels for {ids.size} tokens: give one for each.")
    trained: npt.NDArray[np.bool_] = given != NOT_TRAINED
    wrong = np.flatnonzero(trained & (given != ids))
    if wrong.size:
        at = wrong[0]
        raise UsageError(
            f"The label at position {at} is {given[at]}, but the token there is {ids[at]}: "
            "a label repeats its token or is -100."
        )
    if trained[:1].any():
        raise UsageError("The first token has a label, but nothing comes before it: make it -100.")
    return trained


def _cross_entropy(row: npt.NDArray[np.float32], target: int) -> float:
    shifted = row.astype(np.float64) - row.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])


def _choose(row: npt.NDArray[np.float32], temperature: float, draws: np.random.Generator) -> int:
    if temperature == 0:
        return int(row.argmax())
    odds = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return int(draws.choice(len(odds), p=odds / odds.sum()))


def usable_cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
