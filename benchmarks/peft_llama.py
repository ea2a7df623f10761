"""transformers' llama with the numbers of a GGUF file, and PEFT's pairs on it: what gguflora is compared with.

Nothing is downloaded: the configuration is made from what the file says. A GGUF of the llama architecture holds the
rows of queries and keys in another order than transformers, because its rope turns neighbours (2i, 2i+1) where
transformers turns (i, i + h/2); lora_b of such a layer goes with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gguflora.arch import ModelSpec
from gguflora.gguf import GgufFile
from gguflora.kernels.dequantise.reference import dequantise
from gguflora.model import Pairs

OTHER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""By stem; a layer's stand in model.layers.N."""


def llama(gguf: GgufFile, spec: ModelSpec, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model in `dtype`, each tensor dequantised once.

    Args:
        gguf: a file of the llama architecture; its linear layers all have a bias or none has.
        spec: what it holds.
        dtype: of every weight, as `from_pretrained(dtype=...)` has it.
    """
    config = _config(spec)
    with torch.device("meta"):  # random numbers for what is replaced at once would take time and memory
        model = LlamaForCausalLM(config)
    weights = {}
    for name in gguf.tensors:
        if name != "rope_freqs.weight":
            stem, kind = name.rsplit(".", 1)
            weights[f"{other_name(stem)}.{kind}"] = transformers_rows(values_of(gguf, name), name, spec).to(dtype)
    if spec.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    if "rope_freqs.weight" in gguf.tensors:
        model.model.rotary_emb.inv_freq /= values_of(gguf, "rope_freqs.weight")
    return model


def with_peft(model: PreTrainedModel, spec: ModelSpec, pairs: Pairs, scale: float) -> PeftModel:
    """The model with copies of `pairs` on it, by PEFT; without dropout, so that training is the same arithmetic.

    Args:
        model: from `llama`, or of another architecture by its own file; PEFT changes it.
        spec: what the file holds.
        pairs: by GGUF tensor name, all of one rank.
        scale: alpha / rank.
    """
    [rank] = {pair.lora_a.shape[0] for pair in pairs.values()}
    names = [other_name(name.removesuffix(".weight")) for name in pairs]
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # annotated as int; PEFT only divides it by r
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 under an old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = get_peft_model(model, config)
    copy_pairs(adapted, spec, pairs)
    return adapted


def copy_pairs(model: PeftModel, spec: ModelSpec, pairs: Pairs) -> None:
    """Set PEFT's parameters to `pairs`, and leave no gradient on them."""
    with torch.no_grad():
        for name, parameter in peft_parameters(model, pairs):
            tensor, half = name.rsplit(".", 1)
            value: Tensor = getattr(pairs[tensor], half)
            parameter.copy_(transformers_rows(value, tensor, spec) if half == "lora_b" else value)
            parameter.grad = None


def peft_parameters(model: PeftModel, pairs: Pairs) -> Iterator[tuple[str, nn.Parameter]]:
    """PEFT's parameters under gguflora's names (blk.0.attn_q.weight.lora_a); rows are in transformers' order."""
    base: Any = model.base_model
    for name in pairs:
        layer = base.model.get_submodule(other_name(name.removesuffix(".weight")))
        yield name + ".lora_a", layer.lora_A["default"].weight
        yield name + ".lora_b", layer.lora_B["default"].weight


def other_name(stem: str) -> str:
    """The path in transformers' model of a GGUF tensor's stem: blk.3.attn_q is model.layers.3.self_attn.q_proj."""
    if not stem.startswith("blk."):
        return OTHER_NAMES[stem]
    _, layer, rest = stem.split(".")
    return f"model.layers.{layer}.{OTHER_NAMES[rest]}"


def transformers_rows(values: Tensor, name: str, spec: ModelSpec) -> Tensor:
    """Rows of a GGUF tensor (or of its lora_b) in transformers' order: the inverse of `gguf_rows`."""
    heads = _turned_heads(name, spec)
    if heads is None:
        return values
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def gguf_rows(values: Tensor, name: str, spec: ModelSpec) -> Tensor:
    """Rows of a transformers tensor in the file's order (llama.cpp, conversion/llama.py, LlamaModel.permute)."""
    heads = _turned_heads(name, spec)
    if heads is None:
        return values
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _turned_heads(name: str, spec: ModelSpec) -> int | None:
    """Heads of a tensor whose rows rope turns; None where the order is the same."""
    mixer = spec.layers[0].mixer
    if mixer.rope.kind == "half_split":
        return None
    if ".attn_q." in name:
        return mixer.heads
    return mixer.kv_heads if ".attn_k." in name else None


def _config(spec: ModelSpec) -> LlamaConfig:
    layer = spec.layers[0]
    mixer, rope = layer.mixer, layer.mixer.rope
    scaling = {"rope_type": "default"} if rope.scale == 1 else {"rope_type": "linear", "factor": 1 / rope.scale}
    return LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=layer.ffn.ffn_gate.shape[0],
        num_hidden_layers=len(spec.layers),
        num_attention_heads=mixer.heads,
        num_key_value_heads=mixer.kv_heads,
        head_dim=mixer.head_dim,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.epsilon,
        rope_parameters={"rope_theta": rope.base, **scaling},
        tie_word_embeddings=spec.tied,
        attention_bias=mixer.attn_q.bias is not None,
        mlp_bias=layer.ffn.ffn_gate.bias is not None,
        use_cache=False,
    )


def values_of(gguf: GgufFile, name: str) -> Tensor:
    """A tensor in float32, in its own shape."""
    info = gguf.tensors[name]
    packed = torch.tensor(gguf.raw(name)).view(info.shape[0] if len(info.shape) > 1 else 1, -1)
    return dequantise(packed, info.type).reshape(info.shape)
