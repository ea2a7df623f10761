"""transformers' Gemma 3 with the numbers of a GGUF file; peft_llama.py puts pairs on it.

The file's weights of norms are one larger: transformers adds the one (llama.cpp, conversion/gemma.py). Queries and keys
stand in transformers' order.
"""

from __future__ import annotations

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding, Gemma3TextScaledWordEmbedding

from benchmarks.peft_llama import OTHER_NAMES, values_of
from gguflora.arch import ModelSpec
from gguflora.gguf import GgufFile

_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def gemma3(gguf: GgufFile, spec: ModelSpec, dtype: torch.dtype) -> Gemma3ForCausalLM:
    """The model in `dtype`, each tensor dequantised once; the file's embedding is its output layer too."""
    config = _config(spec)
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    weights = {}
    for name in gguf.tensors:
        stem = name.removesuffix(".weight")
        norm = 1 if stem.endswith("norm") else 0
        weights[_other_name(stem) + ".weight"] = (values_of(gguf, name) - norm).to(dtype)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = Gemma3RotaryEmbedding(config)
    embedding = Gemma3TextScaledWordEmbedding(1, 1, 0, embed_scale=spec.width**0.5)
    model.model.embed_tokens.embed_scale = embedding.embed_scale
    return model


def _other_name(stem: str) -> str:
    if not stem.startswith("blk."):
        return OTHER_NAMES[stem]
    _, layer, rest = stem.split(".")
    return f"model.layers.{layer}.{_NORMS.get(rest) or OTHER_NAMES[rest]}"


def _config(spec: ModelSpec) -> Gemma3TextConfig:
    mixer = spec.layers[0].mixer
    windows = [layer.mixer.window for layer in spec.layers]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    bases = {kind: layer.mixer.rope.base for kind, layer in zip(kinds, spec.layers, strict=True)}
    return Gemma3TextConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.layers[0].ffn.ffn_gate.shape[0],
        num_hidden_layers=len(spec.layers),
        num_attention_heads=mixer.heads,
        num_key_value_heads=mixer.kv_heads,
        head_dim=mixer.head_dim,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.epsilon,
        layer_types=kinds,
        sliding_window=next(window for window in windows if window is not None),
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        query_pre_attn_scalar=round(mixer.scale**-2),
        use_cache=False,
    )
