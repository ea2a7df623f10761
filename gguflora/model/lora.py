"""The pairs that are trained: lora_a and lora_b per target, float32, keyed by the base tensor's name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gguflora.arch import LinearSpec
from gguflora.gguf import Adapter, ChatSetting, Identity, Pair


@dataclass(frozen=True)
class LoraPair:
    """One target's matrices: lora_a (r, in), lora_b (out, r); both want gradients."""

    lora_a: Tensor
    lora_b: Tensor


Pairs = Mapping[str, LoraPair]


def new_pairs(targets: Iterable[LinearSpec], rank: int, seed: int) -> dict[str, LoraPair]:
    """Fresh pairs: lora_a uniform in +-1/sqrt(in), lora_b zero, so the adapter starts as nothing.

    The bound is PEFT's (kaiming_uniform with a = sqrt(5)). Each tensor draws from a generator of its own, keyed by
    the seed and its name: another target more or less changes no other pair.
    """
    pairs = {}
    for target in targets:
        out, columns = target.shape
        generator = torch.Generator().manual_seed(_tensor_seed(seed, target.name))
        bound = 1 / math.sqrt(columns)
        lora_a = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        pairs[target.name] = LoraPair(lora_a.requires_grad_(), torch.zeros(out, rank).requires_grad_())
    return pairs


def to_adapter(
    pairs: Pairs,
    architecture: str,
    alpha: float,
    base: Identity,
    chat: ChatSetting = ChatSetting(),  # noqa: B008 (frozen)
) -> Adapter:
    """The pairs as an adapter file holds them."""
    arrays = {
        name: Pair(pair.lora_a.detach().numpy().copy(), pair.lora_b.detach().numpy().copy())
        for name, pair in pairs.items()
    }
    return Adapter(architecture, float(np.float32(alpha)), arrays, base, chat)


def from_adapter(adapter: Adapter) -> dict[str, LoraPair]:
    """An adapter file's pairs as tensors that want gradients."""
    return {
        name: LoraPair(
            torch.tensor(pair.lora_a, requires_grad=True),
            torch.tensor(pair.lora_b, requires_grad=True),
        )
        for name, pair in adapter.pairs.items()
    }


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)
