"""How large an adapter's pairs are: what training did, module by module. No torch here.

The change that a pair makes is scale * B @ A with scale = alpha / rank, as large as the tensor itself. Its Frobenius
norm needs no such matrix: |B A|^2 = trace(A^T B^T B A) = trace((B^T B) (A A^T)), two products of rank x rank. In
float64, so that what rounds away is 1e-8 of |A| |B| at most.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gguflora.gguf import Adapter, Pair
from gguflora.report.inspected import PairFacts, StemFacts

_LAYER = re.compile(r"blk\.(\d+)\.")


def pair_facts(adapter: Adapter) -> tuple[PairFacts, ...]:
    """Each pair's norms, in the order of the adapter."""
    return tuple(_facts(name, pair, adapter.alpha / pair.rank) for name, pair in adapter.pairs.items())


def stem_facts(pairs: Iterable[PairFacts]) -> tuple[StemFacts, ...]:
    """The pairs by stem, in the order in which the stems first come."""
    groups: dict[str, list[PairFacts]] = defaultdict(list)
    for pair in pairs:
        groups[pair.stem].append(pair)
    return tuple(_group(stem, group) for stem, group in groups.items())


def change_norm(lora_a: npt.NDArray[np.float32], lora_b: npt.NDArray[np.float32]) -> float:
    """Frobenius norm of lora_b @ lora_a, without forming it.

    Args:
        lora_a: (rank, in)
        lora_b: (out, rank)
    """
    a, b = lora_a.astype(np.float64), lora_b.astype(np.float64)
    square = np.sum((b.T @ b) * (a @ a.T))  # both are symmetric, so the trace of their product is this sum
    return float(np.sqrt(max(square, 0.0)))


def _facts(name: str, pair: Pair, scale: float) -> PairFacts:
    layer = _LAYER.match(name)
    return PairFacts(
        tensor=name,
        stem=name.removesuffix(".weight").rsplit(".", 1)[-1],
        layer=int(layer[1]) if layer else None,
        rank=pair.rank,
        shape=(pair.lora_b.shape[0], pair.lora_a.shape[1]),
        lora_a=float(np.linalg.norm(pair.lora_a.astype(np.float64))),
        lora_b=float(np.linalg.norm(pair.lora_b.astype(np.float64))),
        change=scale * change_norm(pair.lora_a, pair.lora_b),
    )


def _group(stem: str, pairs: list[PairFacts]) -> StemFacts:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(pairs)

    return StemFacts(
        stem=stem,
        pairs=len(pairs),
        ranks=tuple(sorted({pair.rank for pair in pairs})),
        lora_a=mean(pair.lora_a for pair in pairs),
        lora_b=mean(pair.lora_b for pair in pairs),
        change=mean(pair.change for pair in pairs),
        largest_change=max(pair.change for pair in pairs),
        without_effect=sum(pair.change == 0 for pair in pairs),
    )
