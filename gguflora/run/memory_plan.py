"""How much memory a training run takes at its peak, part by part, from the model's shapes and what was chosen.

The formulas follow the buffers of model/explicit*.py, whose names they bear. What no formula gives (Python, torch, the
compiled operations) is measured: it is what the process takes before the weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from gguflora.arch import LayerSpec, ModelSpec
from gguflora.gguf import GgufFile
from gguflora.kernels.attention.explicit import BLOCK, SIZES
from gguflora.kernels.head_loss.explicit import chunk_rows
from gguflora.model import LoraPair
from gguflora.run.setting import PRODUCTS

FLOAT32 = 4
PRODUCT_BYTES = 700_000
"""What oneDNN keeps for the shape of a product (docs/log.md)."""
SLACK_BYTES = 80_000_000
"""What the allocator holds on to between uses: seen on SmolLM2 and Gemma 3 270M, 60 to 100 MB (docs/log.md)."""
LESS_MEMORY = "--recompute on, a smaller --micro-batch-tokens or --weights packed take less."


@dataclass(frozen=True)
class Setting:
    """What the memory depends on besides model and adapter.

    Attributes:
        dtype: of linear layers and attention.
        packed: weights stay in the file's blocks.
        tokens: most tokens in a row; a longer document makes a longer row.
        longest: tokens of the longest document.
        recompute: layers run again in the backward.
    """

    dtype: torch.dtype
    packed: bool
    tokens: int
    longest: int
    recompute: bool


def memory_plan(gguf: GgufFile, spec: ModelSpec, pairs: dict[str, LoraPair], setting: Setting) -> dict[str, int]:
    """Bytes at the peak of training, by what takes them, besides what the process takes without it."""
    size = setting.dtype.itemsize
    row = max(setting.tokens, setting.longest)
    kept = [_kept(layer, spec.width, pairs, size) for layer in spec.layers]
    between = spec.width * FLOAT32  # the residual that each layer begins with
    layers = max(kept) + between * (len(kept) + 2) if setting.recompute else sum(kept) + between * (len(kept) + 1)
    return {
        "weights": _weights(gguf, spec, setting),
        "adapter": (4 * FLOAT32 + size) * sum(pair.lora_a.numel() + pair.lora_b.numel() for pair in pairs.values()),
        "kept for the backward": row * layers,
        "working buffers": row * max(_working(layer, spec.width, size) for layer in spec.layers),
        "attention": max(_attention(layer, setting.longest, size) for layer in spec.layers),
        "head": chunk_rows(spec.vocabulary) * spec.vocabulary * size + row * spec.width * (3 * size + FLOAT32),
        "compiled products": PRODUCTS * PRODUCT_BYTES,
        "held by the allocator": SLACK_BYTES,
    }


def _weights(gguf: GgufFile, spec: ModelSpec, setting: Setting) -> int:
    embedding = gguf.tensors[spec.token_embd].nbytes
    if not setting.packed:
        return embedding + setting.dtype.itemsize * sum(prod(linear.shape) for linear in spec.linears())
    in_file = sum(gguf.tensors[linear.name].nbytes for linear in spec.linears())
    largest = max(prod(spec.output.shape), *(_largest_group(layer) for layer in spec.layers))
    return embedding + in_file + setting.dtype.itemsize * largest


def _largest_group(layer: LayerSpec) -> int:
    m, f = layer.mixer, layer.ffn
    qkv = sum(prod(linear.shape) for linear in (m.attn_q, m.attn_k, m.attn_v))
    return max(qkv, prod(f.ffn_gate.shape) + prod(f.ffn_up.shape))


def _kept(layer: LayerSpec, width: int, pairs: dict[str, LoraPair], size: int) -> int:
    """Bytes a token that a layer keeps for its backward: qkv, mixed, gate_up, branches, c of the pairs, norms' r."""
    m, f = layer.mixer, layer.ffn
    branches = width * (2 if layer.post_ffw_norm else 1)
    heads = (2 * m.heads + 2 * m.kv_heads) * m.head_dim
    ranks = sum(len(pairs[linear.name].lora_a) for linear in layer.linears() if linear.name in pairs)
    return size * (heads + 2 * f.ffn_gate.shape[0] + branches + ranks) + FLOAT32 * (3 if layer.post_ffw_norm else 2)


def _working(layer: LayerSpec, width: int, size: int) -> int:
    """Bytes a token of the buffers that all layers share: x, y, dx, dy; dh, h_mid; q, k, their gradients; the ffn's."""
    m, f = layer.mixer, layer.ffn
    heads = (m.heads + 2 * m.kv_heads) * m.head_dim
    ffn = 4 * f.ffn_gate.shape[0]  # act, d_act, d_gate_up
    return size * (4 * width + 4 * heads + m.heads * m.head_dim + ffn) + 2 * FLOAT32 * width


def _attention(layer: LayerSpec, longest: int, size: int) -> int:
    """Bytes of a block's scores: probabilities, their gradient, and one of them on the way."""
    m = layer.mixer
    rows = min(BLOCK, -(-longest // SIZES) * SIZES)
    keys = longest if m.window is None else min(longest, m.window + BLOCK)
    return 3 * size * m.heads * rows * keys
