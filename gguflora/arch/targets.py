"""Which tensors get a pair: the user's words to the file's names, refused where llama.cpp would not apply them.

llama.cpp multiplies pairs in `build_lora_mm` (src/llama-graph.cpp:1520); a pair on any other tensor is rejected,
aborts the process, or loads and does nothing. Each of those is an error here, before any training. Which tensor is
which is part of an architecture's row; it is an allow-list, so that a tensor that nobody tried is refused too.
"""

from __future__ import annotations

import difflib

from gguflora.arch.architectures import TIED_PAIRS
from gguflora.arch.specs import LinearSpec, ModelSpec
from gguflora.errors import ModelError, UsageError

ALL_LINEAR = "all-linear"

# Names that other trainers use, by GGUF stem.
OTHER_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "lm_head": "output",
    "embed_tokens": "token_embd",
}


def canonical_targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same targets under the file's names, each once and sorted: two ways to say one thing become one."""
    return tuple(sorted({OTHER_NAMES.get(name, name) for name in names}))


def resolve_targets(spec: ModelSpec, names: tuple[str, ...], rank: int) -> tuple[LinearSpec, ...]:
    """The linear layers that `names` mean, in the order of the computation.

    Args:
        spec: the model.
        names: all-linear (every linear layer inside the blocks), stems (attn_q), their other names (q_proj), or
            full tensor names (blk.3.attn_q.weight).
        rank: the pairs' rank, which no target's matrix may be smaller than.

    Raises:
        ModelError: llama.cpp would reject, ignore or crash on a pair there.
        UsageError: a name means nothing here, or the rank is larger than a matrix.
    """
    linears = list(spec.linears())
    chosen: set[str] = set()
    for name in names:
        chosen |= _matching(spec, linears, OTHER_NAMES.get(name, name), name)
    targets = tuple(linear for linear in linears if linear.name in chosen)
    for target in targets:
        if rank > min(target.shape):
            raise UsageError(
                f"--rank {rank} is larger than {target.name}, which is {target.shape[0]} x {target.shape[1]}: "
                f"use {min(target.shape)} or less."
            )
    return targets


def _matching(spec: ModelSpec, linears: list[LinearSpec], name: str, given: str) -> set[str]:
    if name == ALL_LINEAR:
        return {
            linear.name for linear in linears if linear is not spec.output and spec.pairs.get(linear.stem) == "acts"
        }
    found = {linear.name for linear in linears if name in (linear.stem, linear.name)}
    if reason := _refusal(spec, name, known=bool(found)):
        raise ModelError(f"--target {given}: {reason}")
    if found:
        return found
    stems = sorted({linear.stem for linear in linears})
    near = difflib.get_close_matches(given, [*stems, ALL_LINEAR, *OTHER_NAMES], n=1)
    hint = f"did you mean {near[0]}?" if near else f"possible here: {ALL_LINEAR}, {', '.join(stems)}."
    raise UsageError(f"--target {given} names no tensor of this model; {hint}")


def _refusal(spec: ModelSpec, name: str, known: bool) -> str | None:
    """Why no pair can be trained on what `name` means; None if one can, or if it means nothing here.

    Args:
        spec: the model.
        name: a stem or a full tensor name.
        known: the model has a linear layer of this name.
    """
    stem = name.removesuffix(".weight").rsplit(".", 1)[-1]
    effect = "ignored" if stem == "bias" else spec.pairs.get(stem)
    match effect:
        case "ignored":
            return "llama.cpp loads an adapter for it but never applies it."
        case "rejected":
            return f"llama.cpp rejects an adapter for it{_because_tied(spec, stem)}."
        case "aborts":
            return f"llama.cpp aborts on an adapter for it{_because_tied(spec, stem)}."
        case "acts":
            return None if known or stem != "token_embd" else "pairs on the embedding are not supported yet."
        case _:
            return "whether llama.cpp applies an adapter for it was never tried." if known else None


def _because_tied(spec: ModelSpec, stem: str) -> str:
    return ", because this model's embedding is also its output layer" if spec.tied and stem in TIED_PAIRS else ""
