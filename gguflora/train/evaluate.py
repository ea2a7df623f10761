"""Mean nll over trained tokens, without gradients. Weights are ignored: each trained token counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.data import Encoded, MicroBatch, lengths_of, packed
from gguflora.model import Decoder
from gguflora.train.room import is_out_of_memory, nothing_left, shorter_rows
from gguflora.train.step import Method, micro_batch_nll


@dataclass(frozen=True)
class Measured:
    """Mean nll over `tokens` trained tokens."""

    nll: float
    tokens: int


def evaluate(decoder: Decoder, encoded: Sequence[Encoded], micro_batch_tokens: int, method: Method) -> Measured:
    """Measure `encoded` with the decoder as it is, packed into rows of at most `micro_batch_tokens` tokens.

    When memory runs out it begins again with shorter rows, as a step does.

    Raises:
        MachineError: memory ran out on an example alone.
    """
    lengths, limit = lengths_of(encoded).tolist(), micro_batch_tokens
    while True:
        try:
            total, tokens = 0.0, 0
            for row in packed(encoded, limit):
                nll = token_nll(decoder, row, method)
                total, tokens = total + float(nll.sum(dtype=np.float64)), tokens + len(nll)
            return Measured(total / tokens, tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shorter = shorter_rows(lengths, limit)
            if shorter is None:
                raise nothing_left(lengths, "while measuring", error) from error
        limit = shorter
        if method.work is not None:
            method.work.release(limit)


def token_nll(decoder: Decoder, micro_batch: MicroBatch, method: Method) -> npt.NDArray[np.float32]:
    """The nll of each trained token of a micro-batch, in its order."""
    result: npt.NDArray[np.float32] = micro_batch_nll(decoder, micro_batch, method).numpy()
    return result
