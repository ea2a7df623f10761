"""How much memory a training run takes at its peak, part by part, from the model's shapes and what was chosen.

The formulas follow the buffers of model/explicit*.py, whose names they bear, with what the operations of kernels/ take
beside them. What no formula gives is a constant here, with what it is and how it was measured. So a plan is a function
of file and options: the same at every run.

Memory that only repeats what a file holds, its mapped pages, is counted apart: the system takes it back when it needs
it and reads it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from gguflora.arch import LayerSpec, LinearSpec, ModelSpec
from gguflora.config import ComputeConfig, TrainingConfig
from gguflora.data import lengths_of
from gguflora.gguf import GgufFile
from gguflora.kernels.attention.explicit import BLOCK, SIZES
from gguflora.kernels.attention.flash_parts import SIZES_OF_HEADS, backward_items
from gguflora.kernels.head_loss.explicit import chunk_rows
from gguflora.model import LoraPair
from gguflora.run.dataset import Dataset
from gguflora.run.setting import PRODUCTS

FLOAT32 = 4
PROCESS_BYTES, TOKEN_BYTES = 390_000_000, 250
LIBRARY_BYTES = 160_000_000
"""What the process takes before weights are loaded: Python 3.11, torch 2.13 and numba 0.68 with kernels from its cache,
LIBRARY_BYTES of it pages of libraries; and for each token of the vocabulary (403 MB with 49,152 tokens, 455 with
262,144). Where numba can keep no cache the kernels are compiled in the process itself: 120 MB more."""
NUMBA_BYTES = 115_000_000
"""Of it numba, LLVM and the kernels, which torch's operations do without."""
PRODUCT_BYTES = 700_000
"""What oneDNN keeps for the shape of a product (docs/log.md)."""
SLACK_BYTES = 40_000_000
"""What the allocator holds on to between uses: 10 to 50 MB of anonymous memory that nothing above accounts for."""


@dataclass(frozen=True)
class Setting:
    """What the memory depends on besides model, adapter and data: what may be chosen to save it.

    Attributes:
        dtype: of linear layers and attention.
        packed: weights stay in the file's blocks, read through its map.
        rows: most tokens in a row; a longer example makes a longer row.
        recompute: layers run again in the backward.
        compiled: compiled operations run between the products, torch's else.
        tiles: products and attention are by tiles (kernels/tiles.py), where sizes suit.
        threads: that compute.
    """

    dtype: torch.dtype
    packed: bool
    rows: int
    recompute: bool
    compiled: bool = True
    tiles: bool = False
    threads: int = 1


@dataclass(frozen=True)
class Load:
    """What is trained, as far as memory goes; sizes in tokens.

    Attributes:
        ranks: of the pairs, by the tensor they are on.
        step: most tokens that could be in one row (of a step; 1 where each example is computed alone).
        longest: of the examples to train; None: not known, and none longer than a row.
        measured: all that is measured on; measured_longest: the longest of it.
    """

    ranks: Mapping[str, int]
    step: int
    longest: int | None
    measured: int = 0
    measured_longest: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of training.

    Attributes:
        parts: by what takes them.
        mapped: pages of the model's file besides, which the system takes back when it needs memory.
    """

    parts: Mapping[str, int]
    mapped: int

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def ranks_of(pairs: Mapping[str, LoraPair]) -> dict[str, int]:
    """The rank of each pair."""
    return {name: len(pair.lora_a) for name, pair in pairs.items()}


def load_of(dataset: Dataset, ranks: Mapping[str, int], training: TrainingConfig, compute: ComputeConfig) -> Load:
    """What is trained of a dataset."""
    lengths, measured = (lengths_of(part.encoded) for part in (dataset.train, dataset.validation))
    step = training.batch_tokens or int(np.sort(lengths)[-(training.batch_size or 1) :].sum())
    return Load(
        ranks=ranks,
        step=step if compute.packing == "on" else 1,
        longest=int(lengths.max()),
        measured=int(measured.sum()),
        measured_longest=int(measured.max(initial=0)),
    )


def row_tokens(load: Load, rows: int) -> int:
    """Tokens of the longest row that is trained, with rows of at most `rows` tokens."""
    return max(min(rows, load.step), load.longest or 0)


def measured_tokens(load: Load, rows: int) -> int:
    """Tokens of the longest row that is measured; 0 where nothing is."""
    return max(load.measured_longest, min(rows, load.measured))


def memory_plan(gguf: GgufFile, spec: ModelSpec, load: Load, setting: Setting) -> MemoryPlan:
    """What training takes at its peak."""
    size = setting.dtype.itemsize
    row = row_tokens(load, setting.rows)
    longest = max(load.longest or row, load.measured_longest)
    measured = measured_tokens(load, setting.rows)
    pairs = sum(load.ranks[linear.name] * sum(linear.shape) for linear in spec.linears() if linear.name in load.ranks)
    parts = {
        "process": PROCESS_BYTES + TOKEN_BYTES * spec.vocabulary - (0 if setting.compiled else NUMBA_BYTES),
        "weights": _weights(spec, setting),
        "adapter": (2 * FLOAT32 + size) * pairs,  # values, gradients, and values in the compute dtype, kept for a row
        "optimiser": 2 * FLOAT32 * pairs,
        "saved activations": _saved(spec, load.ranks, setting, row, measured),
        "workspace": max(row, measured) * max(_working(layer, spec.width, size) for layer in spec.layers),
        "attention": max(_attention(layer, longest, setting) for layer in spec.layers),
        "head": _logits(spec, max(row, measured)) * size + row * spec.width * (3 * size + FLOAT32),
        "temporaries": 0
        if setting.compiled
        else max(_temporaries(spec, layer, max(row, measured), longest) for layer in spec.layers),
        "scratch": _scratch(spec, setting),
    }
    return MemoryPlan(parts, _mapped(gguf, spec, setting.packed))


def matrices(spec: ModelSpec) -> list[LinearSpec]:
    """All that is multiplied by: an output layer that is the embedding is a matrix of its own."""
    return [*spec.linears(), *([spec.output] if spec.tied else [])]


def _weights(spec: ModelSpec, setting: Setting) -> int:
    return 0 if setting.packed else setting.dtype.itemsize * sum(prod(matrix.shape) for matrix in matrices(spec))


def _mapped(gguf: GgufFile, spec: ModelSpec, packed: bool) -> int:
    """The embedding's pages, of which tokens ask for some, and packed weights, each tensor once."""
    names = {spec.token_embd} | ({matrix.name for matrix in matrices(spec)} if packed else set())
    return sum(gguf.tensors[name].nbytes for name in names)


def _saved(spec: ModelSpec, ranks: Mapping[str, int], setting: Setting, row: int, measured: int) -> int:
    """What layers keep for their backward, the residuals between them, and a layer's worth for what is measured."""
    kept = [_kept(layer, spec.width, ranks, setting.dtype.itemsize) for layer in spec.layers]
    between = spec.width * FLOAT32  # the residual that each layer begins with
    if setting.recompute:
        return max(row, measured) * max(kept) + row * between * (len(kept) + 2)
    return row * (sum(kept) + between * (len(kept) + 1)) + measured * max(kept)


def _logits(spec: ModelSpec, row: int) -> int:
    """Logits that exist at once: a chunk's, of as many rows as are labelled at most."""
    return min(row, chunk_rows(spec.vocabulary)) * spec.vocabulary


def _scratch(spec: ModelSpec, setting: Setting) -> int:
    """A packed weight's dequantised matrix; what libraries keep."""
    matrix = max(prod(spec.output.shape), *(_largest_group(layer) for layer in spec.layers))
    dense = setting.dtype.itemsize * matrix if setting.packed else 0
    library = 0 if setting.tiles else PRODUCTS * PRODUCT_BYTES
    return dense + library + SLACK_BYTES


def _temporaries(spec: ModelSpec, layer: LayerSpec, row: int, longest: int) -> int:
    """What torch's operations write and drop, in float32: of all operations the most at once.

    A chunk of logits and its exponentials (head_loss/cross_entropy.py); scores and their softmax
    (attention/softmax.py); a norm's x^2, g and g x (norm/explicit.py); the activation, its slope, and what it is of.
    """
    scores = layer.mixer.heads * min(BLOCK, longest) * longest
    head = 2 * _logits(spec, row)
    return FLOAT32 * max(head, 2 * scores, 3 * row * spec.width, 3 * row * layer.ffn.ffn_gate.shape[0])


def _largest_group(layer: LayerSpec) -> int:
    m, f = layer.mixer, layer.ffn
    qkv = sum(prod(linear.shape) for linear in (m.attn_q, m.attn_k, m.attn_v))
    return max(qkv, prod(f.ffn_gate.shape) + prod(f.ffn_up.shape))


def _kept(layer: LayerSpec, width: int, ranks: Mapping[str, int], size: int) -> int:
    """Bytes a token that a layer keeps for its backward: qkv, mixed, gate_up, branches, c of the pairs, lse, r."""
    m, f = layer.mixer, layer.ffn
    branches = width * (2 if layer.post_ffw_norm else 1)
    heads = (2 * m.heads + 2 * m.kv_heads) * m.head_dim
    inner = sum(ranks.get(linear.name, 0) for linear in layer.linears())
    return size * (heads + 2 * f.ffn_gate.shape[0] + branches + inner) + FLOAT32 * (
        m.heads + (3 if layer.post_ffw_norm else 2)
    )


def _working(layer: LayerSpec, width: int, size: int) -> int:
    """Bytes a token of the buffers that all layers share: x, y, dx, dy; dh, h_mid; q, k, their gradients; the ffn's."""
    m, f = layer.mixer, layer.ffn
    heads = (m.heads + 2 * m.kv_heads) * m.head_dim
    ffn = 4 * f.ffn_gate.shape[0]  # act, d_act, d_gate_up
    return size * (4 * width + 4 * heads + m.heads * m.head_dim + ffn) + 2 * FLOAT32 * width


def _attention(layer: LayerSpec, longest: int, setting: Setting) -> int:
    """Bytes that attention to a document works in besides what comes in and goes out."""
    m = layer.mixer
    if setting.tiles and m.head_dim % SIZES_OF_HEADS == 0:
        return _flash(layer, longest, setting.threads)
    rows = min(BLOCK, -(-longest // SIZES) * SIZES)
    keys = longest if m.window is None else min(longest, m.window + BLOCK)
    return 3 * setting.dtype.itemsize * m.heads * rows * keys  # probabilities, their gradient, one of them on the way


def _flash(layer: LayerSpec, longest: int, threads: int) -> int:
    """A thread's keys in three orders, with their sums where a document is one item; and the parts' sums."""
    m = layer.mixer
    items, sums = backward_items([0, longest], m.window, m.kv_heads, m.head_dim)
    each = 3 * 2 + (0 if sums else 2 * FLOAT32)  # bytes for a key's number
    return threads * max(item.keys for item in items) * m.head_dim * each + sums
