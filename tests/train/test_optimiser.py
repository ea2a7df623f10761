"""The update is AdamW's: held to torch.optim.AdamW and to the paper's formula; clipping changes the length alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gguflora.errors import NumericError
from gguflora.model import LoraPair
from gguflora.train import State, named_parameters, new_state
from gguflora.train.optimiser import clip, gradients_of, update
from gguflora.train.schedule import learning_rate
from tests.numerics import assert_close, relative_difference

STEPS, WARMUP, PEAK = 40, 5, 3e-2
SHAPES = {"blk.0.attn_q.weight": (7, 11), "blk.0.attn_k.weight": (3, 11)}
RANK = 5


def random_pairs(dtype: torch.dtype) -> dict[str, LoraPair]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {name: LoraPair(leaf(RANK, columns), leaf(out, RANK)) for name, (out, columns) in SHAPES.items()}


def losses(parameters: list[Tensor]) -> Iterator[Tensor]:
    """One objective a step: smooth, another each time, of sizes from 1e-6 (where epsilon counts) to 10."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        size = 10.0 ** (step % 8 - 6)
        terms = []
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            terms.append((noise * parameter + 0.3 * (parameter - noise).square()).sum())
        yield size * sum(terms[1:], terms[0])


def rate(step: int) -> float:
    return learning_rate(step, STEPS, WARMUP, PEAK, "cosine")


def our_trajectory(dtype: torch.dtype, weight_decay: float) -> tuple[State, list[list[Tensor]]]:
    """The parameters after each of 40 steps."""
    state = new_state(random_pairs(dtype))
    parameters = [parameter for _, parameter in named_parameters(state.pairs)]
    path = []
    for loss in losses(parameters):
        loss.backward()  # type: ignore[no-untyped-call]
        update(state, gradients_of(state), rate(state.step + 1), weight_decay)
        path.append([parameter.detach().clone() for parameter in parameters])
    return state, path


@pytest.mark.parametrize("weight_decay", [0.1, 1.0, 0.0])
def test_40_steps_are_those_of_torchs_adamw(weight_decay: float) -> None:
    """With torch's plain, unfused loop; in float64, where 40 steps leave rounding of 1e-15 a step."""
    state, ours = our_trajectory(torch.float64, weight_decay)
    parameters = [parameter for _, parameter in named_parameters(random_pairs(torch.float64))]
    optimiser = torch.optim.AdamW(
        parameters, lr=PEAK, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, foreach=False, fused=False
    )
    for step, loss in enumerate(losses(parameters), 1):
        optimiser.param_groups[0]["lr"] = rate(step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        for mine, theirs in zip(ours[step - 1], parameters, strict=True):
            assert_close(mine, theirs, 1e-13, f"step {step}")
    assert state.step == STEPS
    for (name, _), parameter in zip(named_parameters(state.pairs), parameters, strict=True):
        assert_close(state.exp_avg[name], optimiser.state[parameter]["exp_avg"], 1e-13, name)
        assert_close(state.exp_avg_sq[name], optimiser.state[parameter]["exp_avg_sq"], 1e-13, name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_40_steps_are_those_of_the_papers_formula(dtype: torch.dtype, tolerance: float) -> None:
    """Algorithm 2 of Loshchilov & Hutter, in numpy: decay by rate * weight_decay, bias corrections from step 1, epsilon
    outside the root. float32 rounds at 6e-8 a step; 40 steps stay below 40 times that."""
    _, ours = our_trajectory(dtype, weight_decay=0.1)
    parameters = [parameter for _, parameter in named_parameters(random_pairs(torch.float64))]
    first, second = ([np.zeros(parameter.shape) for parameter in parameters] for _ in range(2))
    for step, loss in enumerate(losses(parameters), 1):
        for index, gradient in enumerate(torch.autograd.grad(loss, parameters)):
            g = gradient.numpy()
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.999 * second[index] + 0.001 * g**2
            m, v = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
            with torch.no_grad():
                values = parameters[index].numpy()
                values -= rate(step) * 0.1 * values + rate(step) * m / (np.sqrt(v) + 1e-8)
            assert_close(ours[step - 1][index], values, tolerance, f"step {step}")


def test_the_trajectory_can_tell_wrong_arithmetic() -> None:
    """A decay 1 % off moves the end by more than the tolerance in float32."""
    ends = [our_trajectory(torch.float64, weight_decay)[1][-1] for weight_decay in (0.1, 0.101)]
    assert max(relative_difference(one, other) for one, other in zip(*ends, strict=True)) > 1e-5


def test_an_update_clears_the_gradients() -> None:
    state = new_state(random_pairs(torch.float32))
    parameters = [parameter for _, parameter in named_parameters(state.pairs)]
    next(losses(parameters)).backward()  # type: ignore[no-untyped-call]
    update(state, gradients_of(state), 1e-3, 0.0)
    assert all(parameter.grad is None for parameter in parameters)
    with pytest.raises(RuntimeError, match=r"no gradient reached blk\.0\.attn_q\.weight\.lora_a"):
        gradients_of(state)


def test_a_pair_without_a_gradient_is_an_error_and_never_zero() -> None:
    state = new_state(random_pairs(torch.float32))
    for name, parameter in named_parameters(state.pairs):
        if name != "blk.0.attn_k.weight.lora_b":
            parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match=r"no gradient reached blk\.0\.attn_k\.weight\.lora_b"):
        gradients_of(state)


# --- clipping: gradients of norm 13 = |(3, 4, 12)|, in tensors of several sizes ---


def gradients_of_norm_13() -> list[Tensor]:
    return [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([-12.0])]


@pytest.mark.parametrize("max_norm", [13.0, 13.5, 1e9])
def test_at_or_below_the_norm_no_bit_changes(max_norm: float) -> None:
    gradients = gradients_of_norm_13()
    assert clip(gradients, max_norm, "step 1") == 13.0
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_of_norm_13(), strict=True))


@pytest.mark.parametrize(("size", "max_norm"), [(1.0, 12.999), (1.0, 1.0), (1.0, 1e-3), (2.0**-10, 1e-3)])
def test_above_the_norm_all_are_scaled_down_together(size: float, max_norm: float) -> None:
    """Also where they are small: nothing is added to the norm that is divided by."""
    gradients = [gradient * size for gradient in gradients_of_norm_13()]
    assert clip(gradients, max_norm, "step 1") == 13 * size
    for clipped, before in zip(gradients, gradients_of_norm_13(), strict=True):
        assert_close(clipped, before.double() * max_norm / 13, 1.2e-7)  # float32 rounds factor and product, at 6e-8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_stops_the_run(bad: float) -> None:
    gradients = gradients_of_norm_13()
    gradients[0][1, 0] = bad
    with pytest.raises(NumericError, match="the gradients of step 17 are not finite"):
        clip(gradients, 1.0, "step 17")


def test_a_gradient_that_lies_otherwise_in_memory_is_the_same_gradient() -> None:
    """torch's fused AdamW takes a transposed gradient's memory for the parameter's order, without a word."""
    generator = torch.Generator().manual_seed(5)
    results = []
    for transposed in (False, True):
        state = new_state(random_pairs(torch.float32))
        generator.manual_seed(5)
        gradients = [torch.randn(p.shape, generator=generator) for _, p in named_parameters(state.pairs)]
        update(state, [g.t().contiguous().t() if transposed else g for g in gradients], PEAK, 0.1)
        results.append([parameter.detach() for _, parameter in named_parameters(state.pairs)])
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)
