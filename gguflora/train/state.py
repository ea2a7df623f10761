"""The only mutable object of a run, and exactly what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gguflora.model import LoraPair


@dataclass
class State:
    """Where training stands between two steps.

    Attributes:
        pairs: by base tensor name; float32, updated in place.
        exp_avg: AdamW's first moments, keyed like `named_parameters`; exp_avg_sq the second.
        step: updates made.
        epoch_nll: weighted nll summed over the epoch so far; epoch_weight the weights.
        final_loss: loss of the last whole epoch.
        best_loss: lowest validation loss so far (lowest epoch loss without validation), best_epoch its epoch.
        micro_batch_tokens: most tokens in a packed row; recompute: layers are computed again. Out of memory
            changes them, and a resumed run goes on with what was found.
        tokens: trained so far, with what they took in `seconds`: for the summary alone.
    """

    pairs: dict[str, LoraPair]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int = 0
    epoch_nll: float = 0.0
    epoch_weight: float = 0.0
    final_loss: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    finished: bool = False
    micro_batch_tokens: int = 2048
    recompute: bool = False


NUMBERS = tuple(name for name in State.__dataclass_fields__ if name not in ("pairs", "exp_avg", "exp_avg_sq"))


def new_state(pairs: dict[str, LoraPair], micro_batch_tokens: int = 2048, recompute: bool = False) -> State:
    """The state before the first step."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in named_parameters(pairs)}
    return State(
        pairs,
        zeros,
        {name: torch.zeros_like(tensor) for name, tensor in zeros.items()},
        micro_batch_tokens=micro_batch_tokens,
        recompute=recompute,
    )


def named_parameters(pairs: dict[str, LoraPair]) -> Iterator[tuple[str, Tensor]]:
    """Every trained tensor under the name it has in the adapter file."""
    for name, pair in pairs.items():
        yield name + ".lora_a", pair.lora_a
        yield name + ".lora_b", pair.lora_b
