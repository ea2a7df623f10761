"""What the check in llama.cpp (verify.py) takes, and so whether our weights are unpacked for it, packed, or it is left
out.

It comes after training, whose buffers are given back by then. What it adds to what the process holds is a sum like
those of memory_plan.py, of the plain forward in float32 and of llama.cpp beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gguflora.arch import LayerSpec
from gguflora.config import ComputeConfig
from gguflora.data import Encoded
from gguflora.errors import MachineError
from gguflora.llamacpp.context import BATCH_TOKENS
from gguflora.run.machine import memory, reach, taken
from gguflora.run.memory_plan import FLOAT32, LIBRARY_BYTES, matrices
from gguflora.run.opening import Base
from gguflora.run.verify import ROW_TOKENS, first_of, in_rows

FLOAT16 = 2
UNPACKING = 2
"""Times a matrix in float32 that exist while torch's operations unpack it."""
COPIES = 3
"""Of an example's logits in llama.cpp: what it gives, and our copy of it by batches and in one piece."""
SHARE = 2  # without --memory, half of what is in reach is for unpacked weights: packed ones take minutes more


def packed_for_check(base: Base, encoded: Sequence[Encoded], compute: ComputeConfig) -> bool:
    """Whether our weights stay packed for the check: where it would take too much memory with unpacked ones.

    Args:
        base: the opened model.
        encoded: examples to measure, of which the first ones are taken.
        compute: with --memory, if that was given.

    Raises:
        MachineError: with packed ones it would take too much as well.
    """
    own = taken()
    held = own.resident - own.files + LIBRARY_BYTES
    chosen = first_of(encoded, base)
    unpacked, packed = (held + check_bytes(base, chosen, packed=way) for way in (False, True))
    most = compute.memory_bytes or reach(memory(), own).size
    if unpacked <= (most if compute.memory else most // SHARE):
        return False
    if packed <= most:
        return True
    limit = compute.memory or f"{most / 1e6:.0f} MB"
    raise MachineError(
        f"it takes about {packed / 1e6:.0f} MB, and {limit} is the limit; the adapter is saved, and only the check is "
        "missing."
    )


def check_bytes(base: Base, encoded: Sequence[Encoded], *, packed: bool) -> int:
    """What the check adds to what the process holds.

    Args:
        base: the opened model.
        encoded: the examples that are measured.
        packed: our weights stay in the file.
    """
    spec = base.spec
    longest = max(len(example.tokens) for example in encoded)
    row = max(ROW_TOKENS, longest)
    in_row, in_example = (max(map(_trained, parts)) for parts in (in_rows(encoded), [[each] for each in encoded]))
    sizes = [prod(matrix.shape) for matrix in matrices(spec)]
    ours = FLOAT32 * (UNPACKING * max(sizes) if packed else sum(sizes))
    forward = max(_forward(layer, spec.width, row, longest) for layer in spec.layers)
    logits = FLOAT32 * spec.vocabulary * (in_row + COPIES * in_example)
    return ours + forward + logits + _theirs(base, longest)


def _trained(examples: Sequence[Encoded]) -> int:
    return sum(int((example.labels >= 0).sum()) for example in examples)


def _forward(layer: LayerSpec, width: int, row: int, longest: int) -> int:
    """A layer's intermediates in the reference, where nothing is kept for a backward: at its attention or its ffn."""
    m = layer.mixer
    heads = row * (2 * m.heads + 2 * m.kv_heads) * m.head_dim
    scores = 3 * m.heads * longest * longest
    ffn = 4 * row * layer.ffn.ffn_gate.shape[0]
    return FLOAT32 * (4 * row * width + max(heads + scores, ffn))


def _theirs(base: Base, longest: int) -> int:
    """What llama.cpp takes: weights in another order at most, keys and values, and a batch's logits."""
    spec = base.spec
    weights = sum(base.gguf.tensors[matrix.name].nbytes for matrix in matrices(spec))
    length = max(BATCH_TOKENS, 1 << (longest - 1).bit_length())
    cache = sum(2 * FLOAT16 * layer.mixer.kv_heads * layer.mixer.head_dim * length for layer in spec.layers)
    return weights + cache + FLOAT32 * BATCH_TOKENS * spec.vocabulary
