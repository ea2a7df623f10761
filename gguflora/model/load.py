"""From a GGUF file to a Decoder: dequantise what the layers need, keep the embedding packed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gguflora.arch import LayerSpec, LinearSpec, ModelSpec
from gguflora.errors import FileError, ModelError
from gguflora.gguf import BLOCKS, GgmlType, GgufFile
from gguflora.kernels import Kernels
from gguflora.kernels.dequantise.reference import FUNCTIONS, dequantise
from gguflora.model.attention import Attention
from gguflora.model.decoder import Decoder, Embedding, Layer
from gguflora.model.ffn import Ffn
from gguflora.model.linear import Linear


def check_types(gguf: GgufFile) -> None:
    """Make sure that every tensor's type can be dequantised.

    Raises:
        ModelError: a tensor's type is not supported; it is named.
    """
    for info in gguf.tensors.values():
        if info.type not in FUNCTIONS:
            known = ", ".join(type.name for type in FUNCTIONS)
            raise ModelError(
                f"{gguf.path}: tensor {info.name} has type {info.type.name}, which is not supported yet ({known} are)."
            )


def load_decoder(gguf: GgufFile, spec: ModelSpec, dtype: torch.dtype, kernels: Kernels) -> Decoder:
    """Load the base, without pairs (model.decoder.with_pairs adds them).

    Args:
        gguf: the opened file.
        spec: what it holds, from arch.model_spec.
        dtype: the compute dtype of linear layers and attention.
        kernels: the operations' versions.

    Raises:
        ModelError: a tensor's type is not supported.
        FileError: a tensor holds values that are not finite.
    """
    check_types(gguf)
    residual = torch.promote_types(dtype, torch.float32)
    rope = spec.layers[0].mixer.rope
    return Decoder(
        token_embd=_embedding(gguf, spec.token_embd),
        layers=tuple(_layer(gguf, layer, dtype) for layer in spec.layers),
        output_norm=_tensor(gguf, spec.output_norm, residual),
        output=_linear(gguf, spec.output, dtype),
        rope=rope,
        rope_factors=_tensor(gguf, rope.factors, residual) if rope.factors else None,
        epsilon=spec.epsilon,
        dtype=dtype,
        kernels=kernels,
    )


def _layer(gguf: GgufFile, spec: LayerSpec, dtype: torch.dtype) -> Layer:
    residual = torch.promote_types(dtype, torch.float32)
    mixer, ffn = spec.mixer, spec.ffn
    return Layer(
        attn_norm=_tensor(gguf, spec.attn_norm, residual),
        mixer=Attention(
            spec=mixer,
            attn_q=_linear(gguf, mixer.attn_q, dtype),
            attn_k=_linear(gguf, mixer.attn_k, dtype),
            attn_v=_linear(gguf, mixer.attn_v, dtype),
            attn_output=_linear(gguf, mixer.attn_output, dtype),
        ),
        ffn_norm=_tensor(gguf, spec.ffn_norm, residual),
        ffn=Ffn(
            ffn_gate=_linear(gguf, ffn.ffn_gate, dtype),
            ffn_up=_linear(gguf, ffn.ffn_up, dtype),
            ffn_down=_linear(gguf, ffn.ffn_down, dtype),
        ),
    )


def _linear(gguf: GgufFile, spec: LinearSpec, dtype: torch.dtype) -> Linear:
    bias = _tensor(gguf, spec.bias, dtype) if spec.bias else None
    return Linear(name=spec.name, weight=_tensor(gguf, spec.name, dtype), bias=bias)


def _embedding(gguf: GgufFile, name: str) -> Embedding:
    return Embedding(_packed(gguf, name).clone(), gguf.tensors[name].type)


def _tensor(gguf: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    values = dequantise(_packed(gguf, name), gguf.tensors[name].type).reshape(gguf.tensors[name].shape)
    if not values.isfinite().all():
        raise FileError(f"{gguf.path}: tensor {name} holds values that are not finite; download or copy it again.")
    # A copy even where nothing changes: an F32 tensor would otherwise alias the file.
    return values.to(dtype, copy=True)


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
