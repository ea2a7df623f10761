"""From a GGUF file to a Decoder: dequantise what the layers need, leave the embedding, packed, where it is in the file.

What stays packed is a view of the file's map, so it takes no memory that the system could not have back.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from gguflora.arch import LayerSpec, LinearSpec, ModelSpec, check_types
from gguflora.errors import FileError
from gguflora.gguf import BLOCKS, GgmlType, GgufFile
from gguflora.kernels.dequantise.finite import all_finite
from gguflora.kernels.dequantise.reference import dequantise
from gguflora.model.attention import Attention
from gguflora.model.decoder import Decoder, Layer
from gguflora.model.ffn import Ffn
from gguflora.model.linear import Linear
from gguflora.model.weight import PackedRows, PackedWeight, Weight, stacked

CHUNK = 2**22  # elements that are dequantised at a time: 16 MB in float32


def load_decoder(gguf: GgufFile, spec: ModelSpec, dtype: torch.dtype, packed: bool = False) -> Decoder:
    """Load the base, without pairs (model.decoder.with_pairs adds them).

    Args:
        gguf: the opened file.
        spec: what it holds, from arch.model_spec.
        dtype: the compute dtype of linear layers and attention.
        packed: weights stay in the file's blocks, read through its map at each use; else they are dequantised once.

    Raises:
        ModelError: a tensor's type is not supported.
        FileError: a tensor holds values that are not finite.
    """
    check_types(gguf)
    residual = torch.promote_types(dtype, torch.float32)
    factors = spec.layers[0].mixer.rope.factors
    decoder = Decoder(
        token_embd=_rows(gguf, spec.token_embd),
        layers=tuple(_layer(gguf, layer, dtype, packed) for layer in spec.layers),
        output_norm=_tensor(gguf, spec.output_norm, residual),
        output=_linear(gguf, spec.output, dtype, packed),
        embedding_scale=spec.embedding_scale,
        softcap=spec.softcap,
        rope_factors=_optional(gguf, factors, residual),
        epsilon=spec.epsilon,
        dtype=dtype,
    )
    if not packed:
        gguf.drop_pages()
    return decoder


def _layer(gguf: GgufFile, spec: LayerSpec, dtype: torch.dtype, packed: bool) -> Layer:
    residual = torch.promote_types(dtype, torch.float32)
    mixer, ffn = spec.mixer, spec.ffn
    qkv_weight, (attn_q, attn_k, attn_v) = _group(gguf, (mixer.attn_q, mixer.attn_k, mixer.attn_v), dtype, packed)
    gate_up_weight, (ffn_gate, ffn_up) = _group(gguf, (ffn.ffn_gate, ffn.ffn_up), dtype, packed)
    return Layer(
        attn_norm=_tensor(gguf, spec.attn_norm, residual),
        mixer=Attention(
            spec=mixer,
            attn_q_norm=_optional(gguf, mixer.attn_q_norm, residual),
            attn_k_norm=_optional(gguf, mixer.attn_k_norm, residual),
            qkv_weight=qkv_weight,
            attn_q=attn_q,
            attn_k=attn_k,
            attn_v=attn_v,
            attn_output=_linear(gguf, mixer.attn_output, dtype, packed),
        ),
        post_attention_norm=_optional(gguf, spec.post_attention_norm, residual),
        ffn_norm=_tensor(gguf, spec.ffn_norm, residual),
        ffn=Ffn(
            activation=ffn.activation,
            gate_up_weight=gate_up_weight,
            ffn_gate=ffn_gate,
            ffn_up=ffn_up,
            ffn_down=_linear(gguf, ffn.ffn_down, dtype, packed),
        ),
        post_ffw_norm=_optional(gguf, spec.post_ffw_norm, residual),
    )


def _optional(gguf: GgufFile, name: str | None, dtype: torch.dtype) -> Tensor | None:
    return _tensor(gguf, name, dtype) if name else None


def _group(
    gguf: GgufFile, specs: tuple[LinearSpec, ...], dtype: torch.dtype, packed: bool
) -> tuple[Weight, list[Linear]]:
    """Linear layers that read the same input: their weights under each other, and each layer with its own."""
    linears = [_linear(gguf, spec, dtype, packed) for spec in specs]
    weight = stacked([linear.weight for linear in linears])
    if isinstance(weight, PackedWeight):
        return weight, linears
    views = torch.split(weight, [spec.shape[0] for spec in specs])  # so that nothing is held twice
    return weight, [replace(linear, weight=view) for linear, view in zip(linears, views, strict=True)]


def _linear(gguf: GgufFile, spec: LinearSpec, dtype: torch.dtype, packed: bool) -> Linear:
    weight = PackedWeight((_rows(gguf, spec.name),), spec.shape, dtype) if packed else _tensor(gguf, spec.name, dtype)
    return Linear(name=spec.name, weight=weight, bias=_optional(gguf, spec.bias, dtype))


def _tensor(gguf: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    packed, info = _packed(gguf, name), gguf.tensors[name]
    values = torch.empty(packed.shape[0], info.shape[-1], dtype=dtype)
    step = max(1, CHUNK // info.shape[-1])
    for start in range(0, packed.shape[0], step):
        part = dequantise(packed[start : start + step], info.type)
        _require_finite(gguf, name, bool(part.isfinite().all()))
        values[start : start + step] = part
    return values.reshape(info.shape)


def _rows(gguf: GgufFile, name: str) -> PackedRows:
    rows = PackedRows(_packed(gguf, name), gguf.tensors[name].type)
    _require_finite(gguf, name, all_finite(rows.data, rows.type))
    return rows


def _require_finite(gguf: GgufFile, name: str, finite: bool) -> None:
    if not finite:
        raise FileError(f"{gguf.path}: tensor {name} holds values that are not finite; download or copy it again.")


def _packed(gguf: GgufFile, name: str) -> Tensor:
    """A tensor's rows as they lie in the file: (rows, bytes per row), a view of the read-only map."""
    info = gguf.tensors[name]
    row_bytes = _row_bytes(info.shape[-1], info.type)
    with warnings.catch_warnings():
        # torch warns that writing to the view would be undefined; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(gguf.raw(name)).view(-1, row_bytes)


def _row_bytes(elements: int, type: GgmlType) -> int:
    block = BLOCKS[type]
    return elements // block.elements * block.nbytes
