"""Clipping and AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), on float32 master values.

The arithmetic is PyTorch's; the moments are ours, keyed by tensor name, so that a checkpoint can hold them and no
order of parameters matters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from gguflora.errors import NumericError
from gguflora.train.state import State, named_parameters

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def gradients_of(state: State) -> list[Tensor]:
    """The gradients that the step left on the pairs, in the order of `named_parameters`.

    Raises:
        RuntimeError: a pair has no gradient: the graph did not reach it (a bug, never to be passed over as zero).
    """
    gradients = []
    for name, parameter in named_parameters(state.pairs):
        if parameter.grad is None:
            raise RuntimeError(f"no gradient reached {name}")
        gradients.append(parameter.grad)
    return gradients


def clip(gradients: list[Tensor], max_norm: float, step: str) -> float:
    """Scale all gradients down together if their norm exceeds `max_norm`; untouched to the bit otherwise.

    Args:
        gradients: of the step.
        max_norm: what their norm may be.
        step: the step, for the message: its number and examples.

    Returns:
        The norm before clipping.

    Raises:
        NumericError: the norm is not finite.
    """
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    if not norm < float("inf"):
        raise NumericError(
            f"the gradients of {step} are not finite; lower --learning-rate or look at that step's examples."
        )
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def update(state: State, gradients: list[Tensor], learning_rate: float, weight_decay: float) -> None:
    """Apply one AdamW update to the pairs, in place, and count it in `state.step`."""
    names, parameters = zip(*named_parameters(state.pairs), strict=True)
    with torch.no_grad():
        adamw(
            list(parameters),
            [gradient.contiguous() for gradient in gradients],  # the fused loop goes through memory, not elements
            exp_avgs=[state.exp_avg[name] for name in names],
            exp_avg_sqs=[state.exp_avg_sq[name] for name in names],
            max_exp_avg_sqs=[],
            # One counter for each tensor, as the function wants them; all say the number of updates before this.
            state_steps=[torch.tensor(float(state.step)) for _ in names],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=EPSILON,
            maximize=False,
        )
    for parameter in parameters:
        parameter.grad = None
    state.step += 1
