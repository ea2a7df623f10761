"""A document of an example as tokens, and labels that say which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NOT_TRAINED = -100
"""The label of a token that is context only; PyTorch's cross_entropy has the same number."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A document as the model sees it: an example, or one answer of it with what stands before that; T tokens.

    Attributes:
        tokens: (T,)
        labels: (T,) tokens[t] where token t is trained (predicted from the tokens before it), else -100. Not shifted.
            The first is -100: nothing stands before it.
        weight: of the example.
        source: of the example.
        lost_answers: answers of the example that can't be trained, because it can't be found out how the template
            makes the model generate them.
        lost_reasoning: trained answers without their reasoning, which the template does not write.
        no_reasoning: trained answers without reasoning where the template has a place for it.
    """

    tokens: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    weight: float
    source: str
    lost_answers: int = 0
    lost_reasoning: int = 0
    no_reasoning: int = 0
