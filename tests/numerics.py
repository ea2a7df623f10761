"""How far two results lie apart, in the measures of docs/design.md.

Each comparison first makes sure that both sides are there and finite: a NaN or an empty array would pass any bound.
Each failure says where the worst place is, both values there, how many times the bound it is, and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Numbers = npt.ArrayLike | Tensor

KL_BOUND = 1e-9
"""Mean KL of an exact graph: correct code gives 1e-11, a cache in float16 gives 1e-6."""

LARGEST_BOUND = 1e-4
"""Largest difference of an exact graph over the logits' deviation: correct code gives 1e-5 to 5e-5."""

TABLE_KL_BOUND = 2e-6
"""Mean KL where llama.cpp reads GELU from a table of float16 numbers: correct code gives 1e-7 to 1e-6."""

TABLE_RMS_BOUND = 1e-3
"""Root mean square difference there, over the logits' deviation: correct code gives 3e-4 to 5e-4."""

LUCK = 3.0
"""How far the largest of thousands of rounding errors may lie from that of another correct order of summation."""


@dataclass(frozen=True)
class Gap:
    """How far two sets of logits (T, V) lie apart.

    Attributes:
        kl: KL(theirs || ours) in nats, mean over positions.
        largest: largest difference, over the deviation of all of theirs.
        rms: root mean square of the differences, over the same.
        where: position, token and both values of the largest difference.
    """

    kl: float
    largest: float
    rms: float
    where: str

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.2e}, difference {self.rms:.2e} rms and {self.largest:.2e} at most of the deviation "
            f"({self.where})"
        )


@dataclass(frozen=True)
class Bounds:
    """How far logits of one graph may lie apart; None where a measure is not bounded."""

    kl: float
    largest: float | None = None
    rms: float | None = None

    def times(self, gap: Gap) -> float:
        """How many times its bound the measure is that exceeds it most."""
        pairs = ((gap.kl, self.kl), (gap.largest, self.largest), (gap.rms, self.rms))
        return max(value / bound for value, bound in pairs if bound)


EXACT = Bounds(KL_BOUND, largest=LARGEST_BOUND)
"""Of two float32 computations of one graph."""

GELU_TABLE = Bounds(TABLE_KL_BOUND, rms=TABLE_RMS_BOUND)
"""Of two where one reads GELU from llama.cpp's table."""


def finite(values: Numbers, name: str = "result") -> Floats:
    """The numbers in float64, having made sure that there are some and that each is finite."""
    wide = values.detach().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    assert wide.size > 0, f"{name} is empty"
    bad = np.argwhere(~np.isfinite(wide))
    assert len(bad) == 0, f"{name} has {len(bad)} values that are not finite, the first at {tuple(bad[0].tolist())}"
    return wide


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of each row of logits (T, V)."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def logit_gap(theirs: Numbers, ours: Numbers) -> Gap:
    """Compare logits (T, V) of the same positions."""
    a, b = _pair(theirs, ours)
    p, q = log_softmax(a), log_softmax(b)
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    return Gap(float(kl), float(np.abs(a - b).max() / a.std()), _rms(a - b) / float(a.std()), _worst(b, a))


def assert_same_graph(theirs: Numbers, ours: Numbers, seed: object = None, bounds: Bounds = EXACT) -> Gap:
    """Logits of one graph computed twice in float32: what is left is rounding. Gives the gap, for printing."""
    gap = logit_gap(theirs, ours)
    times = bounds.times(gap)
    assert times <= 1, f"{gap}: {times:.3g} times the bound, seed {seed}"
    return gap


def relative_difference(actual: Numbers, expected: Numbers) -> float:
    """Norm of the difference over the norm of what is expected, of whole tensors."""
    b, a = _pair(actual, expected)
    scale = np.linalg.norm(a)
    assert scale > 0, "what is expected is zero everywhere: nothing can be relative to it"
    return float(np.linalg.norm(b - a) / scale)


def assert_close(
    actual: Numbers, expected: Numbers, tolerance: float, name: str = "result", seed: object = None
) -> None:
    """`relative_difference` of at most `tolerance`."""
    gap = relative_difference(actual, expected)
    worst = _worst(*_pair(actual, expected))
    assert gap <= tolerance, (
        f"{name}: relative difference {gap:.3e}, {gap / tolerance:.3g} times the bound; {worst}; seed {seed}"
    )


def assert_as_exact(
    fast: Tensor, plain: Tensor, exact: Tensor, name: str, *, times: float = 2.0, seed: object = None
) -> float:
    """A fast version errs at most `times` as much as plain PyTorch in the same dtype, both against float64.

    Twice: two correct orders of summation differ by about this much (Dao et al. 2022, FlashAttention's own tests).
    It is the root mean square that is held to it. The largest error of thousands is luck, and may be LUCK times more:
    that bound is for one wrong place, which is off by 1000.

    Returns:
        The ratio of the root mean squares.
    """
    assert fast.dtype == plain.dtype, f"{name}: {fast.dtype} is compared with {plain.dtype}"
    truth = finite(exact, name)
    mine, other = (np.abs(finite(x, name) - truth) for x in (fast, plain))
    half_a_step = torch.finfo(fast.dtype).eps / 2  # where plain PyTorch is exact, one rounding is still no fault
    for measure, allowance in ((_rms, times), (_largest, times * LUCK)):
        allowed = allowance * measure(other) + half_a_step * measure(truth)
        assert measure(mine) <= allowed, (
            f"{name}: {measure.__name__} error {measure(mine):.3e}, plain PyTorch's {measure(other):.3e}, "
            f"{measure(mine) / allowed:.3g} times what is allowed; {_worst(finite(fast), truth)}; seed {seed}"
        )
    return _rms(mine) / max(_rms(other), half_a_step * _rms(truth))


def alike(ours: Numbers, theirs: Numbers) -> tuple[float, float]:
    """Cosine between two effects, and the ratio of their norms (ours over theirs)."""
    a, b = (side.ravel() for side in _pair(ours, theirs))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    assert min(norms) > 0, f"an effect is zero everywhere: norms {norms}"
    return float(a @ b / (norms[0] * norms[1])), float(norms[0] / norms[1])


def _pair(a: Numbers, b: Numbers) -> tuple[Floats, Floats]:
    first, second = finite(a, "the first side"), finite(b, "the second side")
    assert first.shape == second.shape, f"shapes {first.shape} and {second.shape} can't be compared"
    return first, second


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))


def _largest(values: Floats) -> float:
    return float(np.abs(values).max())


def _worst(actual: Floats, expected: Floats) -> str:
    index = np.unravel_index(np.abs(actual - expected).argmax(), actual.shape)
    place = tuple(int(i) for i in index)
    return f"worst at {place}: {actual[index]:.9g}, expected {expected[index]:.9g}"
