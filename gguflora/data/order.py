"""Which examples a step trains: pure functions of (seed, step), so that a resumed run goes on where it stopped.

The random bits come from Philox (Salmon et al., SC 2011) keyed through numpy's SeedSequence. Both are promised to
stay the same in every numpy (NEP 19), which Generator.permutation is not, so the order is an argsort of raw bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_ORDER = 0  # first word of the spawn key: what the bits are for
_SPLIT = 1


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of n examples in an epoch: (n,), read-only.

    Args:
        seed: the run's seed, 0 or more.
        epoch: from 0.
        n: how many examples there are.
    """
    return _shuffled((_ORDER, epoch), seed, n)


def split_order(seed: int, n: int) -> npt.NDArray[np.int64]:
    """An order of n things to draw a validation set from, independent of every epoch's: (n,), read-only."""
    return _shuffled((_SPLIT,), seed, n)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Steps that n examples take; the last may be shorter."""
    return -(-n // batch_size)


def step_indices(seed: int, step: int, n: int, batch_size: int) -> npt.NDArray[np.int64]:
    """The examples of a step, as indices: (batch_size,), or fewer in the last step of an epoch.

    Args:
        seed: the run's seed, 0 or more.
        step: from 0, counted over all epochs.
        n: how many examples there are, at least 1.
        batch_size: examples in a step, at least 1.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(n, batch_size))
    return permutation(seed, epoch, n)[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]


def _shuffled(purpose: tuple[int, ...], seed: int, n: int) -> npt.NDArray[np.int64]:
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=purpose)).random_raw(n)
    order = np.argsort(bits, kind="stable").astype(np.int64)
    order.flags.writeable = False  # it is cached, and shared by all who ask
    return order
