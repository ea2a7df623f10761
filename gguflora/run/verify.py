"""The proof after training: the adapter file in the real llama.cpp, measured on the same tokens as here.

On quantised weights llama.cpp's CPU kernels round activations, so its losses differ a little from exact ones. How
much is expected is measured, not assumed: with the adapter, the mean nll may differ by 2 KL + 3 standard errors of
the paired per-token differences, where KL(llama.cpp || ours) is what the rounding does to the predictions. The base's
own loss on text that it would not write can differ by more than that (the rounding acts on nll in first order, on KL
in second), so it is shown, and what counts is that the gain from base to adapter agrees within 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gguflora.data import Encoded
from gguflora.events import Answer, Verified
from gguflora.gguf import read_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, from_adapter, load_decoder, logits, with_pairs
from gguflora.run.opening import Base

MAX_TOKENS = 20_000
LEAST_TOKENS = 1_000
WORK = 3e12  # parameters x tokens: what two cores check in about a minute
GAIN_TOLERANCE = 0.05
ANSWERS = 3
FEW = 3  # examples that show whether the base came back
ROW_TOKENS = 512  # our side computes short examples together
ANSWER_TOKENS = 128
WIDE_ROWS = 64  # of logits in float64 at once: 134 MB of a vocabulary of 262k

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Both programs' losses on the same trained tokens, and how far apart they may lie."""

    ours: float
    llamacpp: float
    kl: float
    allowed: float
    tokens: int

    @property
    def agrees(self) -> bool:
        """The losses differ by no more than what is allowed."""
        return abs(self.ours - self.llamacpp) <= self.allowed


def verify(base: Base, adapter: Path, encoded: Sequence[Encoded], *, packed: bool = False) -> Verified:
    """Measure base and adapter here and in llama.cpp.

    Args:
        base: the opened model.
        adapter: the file that training wrote; it is read again for our side too.
        encoded: examples to measure; the first ones are taken, as many as a minute or so allows.
        packed: our side reads its weights through the file's map, as training did: slower, in less memory.

    Raises:
        FileError: llama.cpp refuses the model or the adapter.
    """
    chosen = first_of(encoded, base)
    read = read_adapter(adapter)
    decoder = load_decoder(base.gguf, base.spec, torch.float32, packed)
    rank = next(iter(read.pairs.values())).rank
    tuned_decoder = with_pairs(decoder, from_adapter(read), read.alpha / rank)
    with LlamaModel(base.gguf.path) as llama:
        untouched = _their_nll(llama, chosen[:FEW])
        plain = compare(decoder, llama, chosen)
        handle = llama.load_lora_adapter(adapter)
        llama.set_lora_adapter(handle, 1.0)
        tuned = compare(tuned_decoder, llama, chosen)
        llama.remove_lora_adapter(handle)
        restored = np.array_equal(_their_nll(llama, chosen[:FEW]), untouched)
        llama.free_lora_adapter(handle)
    return Verified(
        tokens=plain.tokens,
        base_ours=plain.ours,
        base_llamacpp=plain.llamacpp,
        tuned_ours=tuned.ours,
        tuned_llamacpp=tuned.llamacpp,
        restored=restored,
        allowed=tuned.allowed,
        agrees=tuned.agrees and restored and _same_gain(plain, tuned),
    )


def _same_gain(plain: Agreement, tuned: Agreement) -> bool:
    """The adapter gains the same in both: within 5 %, or within what rounding explains where there is little gain."""
    ours, theirs = plain.ours - tuned.ours, plain.llamacpp - tuned.llamacpp
    return abs(ours - theirs) <= max(GAIN_TOLERANCE * abs(theirs), plain.allowed + tuned.allowed)


def compare(decoder: Decoder, llama: LlamaModel, encoded: Sequence[Encoded]) -> Agreement:
    """Losses of both programs on the trained tokens of `encoded`, each with the adapter that it has on now."""
    ours, theirs, kls = [], [], []
    for examples in in_rows(encoded):
        for example, mine in zip(examples, _our_logits(decoder, examples), strict=True):
            other = llama.logits(example.tokens, _before_trained(example))  # (n, V), as mine
            for a, b, kl in _compared(mine, other, example.labels[example.labels >= 0]):
                ours.append(a)
                theirs.append(b)
                kls.append(kl)
    a, b, kl = (np.concatenate(parts) for parts in (ours, theirs, kls))
    standard_error = (a - b).std() / np.sqrt(len(a))
    return Agreement(
        ours=float(a.mean()),
        llamacpp=float(b.mean()),
        kl=float(kl.mean()),
        allowed=float(2 * kl.mean() + 3 * standard_error),
        tokens=len(a),
    )


def answers(base: Base, adapter: Path, encoded: Sequence[Encoded]) -> list[Answer]:
    """Let llama.cpp answer the first few examples' prompts, greedily, without and with the adapter."""
    decode = base.tokenizer.decode
    results = []
    with LlamaModel(base.gguf.path) as llama:
        handle = llama.load_lora_adapter(adapter)
        for example in encoded[:ANSWERS]:
            start = _last_answer_start(example.labels)
            prompt = example.tokens[:start].tolist()
            trained = example.tokens[start:][example.labels[start:] >= 0].tolist()
            before = llama.generate(prompt, ANSWER_TOKENS)
            llama.set_lora_adapter(handle, 1.0)
            after = llama.generate(prompt, ANSWER_TOKENS)
            llama.remove_lora_adapter(handle)
            texts = (decode(tokens, special=False) for tokens in (prompt, trained, before, after))
            results.append(Answer(*texts))
    return results


def first_of(encoded: Sequence[Encoded], base: Base) -> list[Encoded]:
    """The first examples, as many as both programs measure in a minute or so."""
    parameters = sum(linear.shape[0] * linear.shape[1] for linear in base.spec.linears())
    room = min(MAX_TOKENS, max(LEAST_TOKENS, int(WORK / parameters)))
    chosen: list[Encoded] = []
    for example in encoded:
        room -= len(example.tokens)
        if chosen and room < 0:
            break
        chosen.append(example)
    return chosen


def in_rows(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """The examples in their order, as many together as fit a row; a longer one is a row of its own."""
    row: list[Encoded] = []
    for example in encoded:
        if row and sum(len(other.tokens) for other in (*row, example)) > ROW_TOKENS:
            yield row
            row = []
        row.append(example)
    if row:
        yield row


def _compared(
    mine: npt.NDArray[np.float32], other: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Both sides' nll, and the KL, of targets (n,) under logits (n, V): some rows at a time, since they are float64."""
    for start in range(0, len(targets), WIDE_ROWS):
        rows = slice(start, start + WIDE_ROWS)
        a, b = _log_softmax(mine[rows]), _log_softmax(other[rows])
        at = np.arange(len(a)), targets[rows]
        yield -a[at], -b[at], (np.exp(b) * (b - a)).sum(-1)


def _our_logits(decoder: Decoder, examples: Sequence[Encoded]) -> list[npt.NDArray[np.float32]]:
    """Per example, the logits (n, V) that its trained tokens are drawn from."""
    lengths = [len(example.tokens) for example in examples]
    tokens = torch.from_numpy(np.concatenate([example.tokens for example in examples]).astype(np.int64))
    positions = torch.cat([torch.arange(length) for length in lengths])
    before = np.concatenate([_before_trained(example) for example in examples])
    with torch.no_grad():
        starts = [0, *accumulate(lengths)]
        rows = logits(decoder, tokens, positions, starts, torch.from_numpy(np.flatnonzero(before))).numpy()
    ends = np.cumsum([int((example.labels >= 0).sum()) for example in examples])
    return np.split(rows, ends[:-1])


def _their_nll(llama: LlamaModel, examples: Sequence[Encoded]) -> Floats:
    return np.concatenate([llama.nll(example.tokens, example.labels) for example in examples])


def _before_trained(example: Encoded) -> npt.NDArray[np.bool_]:
    """(T,): True where the next token is trained, for the state there predicts it."""
    return np.append(example.labels[1:] >= 0, False)


def _log_softmax(values: npt.NDArray[np.float32]) -> Floats:
    wide = values.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: Floats = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


def _last_answer_start(labels: npt.NDArray[np.int32]) -> int:
    """Where the last run of trained tokens begins."""
    trained = labels >= 0
    starts = np.flatnonzero(trained & ~np.r_[False, trained[:-1]])
    return int(starts[-1])
