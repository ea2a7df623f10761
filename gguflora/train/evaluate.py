"""Mean nll over trained tokens, without gradients. Weights are ignored: each trained token counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguflora.data import Encoded, MicroBatch, pack
from gguflora.model import Decoder
from gguflora.train.step import Method, micro_batch_nll


@dataclass(frozen=True)
class Measured:
    """Mean nll over `tokens` trained tokens."""

    nll: float
    tokens: int


def evaluate(decoder: Decoder, encoded: Sequence[Encoded], micro_batch_tokens: int, method: Method) -> Measured:
    """Measure `encoded` with the decoder as it is, packed into rows of at most `micro_batch_tokens` tokens."""
    nll = np.concatenate([token_nll(decoder, micro_batch, method) for micro_batch in pack(encoded, micro_batch_tokens)])
    return Measured(float(nll.mean(dtype=np.float64)), len(nll))


def token_nll(decoder: Decoder, micro_batch: MicroBatch, method: Method) -> npt.NDArray[np.float32]:
    """The nll of each trained token of a micro-batch, in its order."""
    result: npt.NDArray[np.float32] = micro_batch_nll(decoder, micro_batch, method).numpy()
    return result
