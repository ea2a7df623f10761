"""A small random model that can fail a test: a complete GGUF of any supported architecture, and adapters for it.

Random weights of the usual size would make a fixture on which most faults are invisible: logits near 0, attention
near uniform, an epsilon that never counts. So here: logits deviate by more than 1, attention is sharp, embedding
rows reach down to where epsilon matters, query heads share keys, heads are wider than width / heads, and every
size differs from every other. Not more than that: the sharper the attention, the more float32 rounding it amplifies
(llama.cpp stays within 4e-5 of the logits' deviation from float64). `tests/gguf/test_tiny.py` holds this file to it.

What a file of an architecture holds is written here by hand from llama.cpp's src/models, not taken from the table that
the tests are about.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguflora.gguf import Adapter, GgufFile, Pair, Tensor, ValueType, f32, write_gguf
from gguflora.gguf.writer import Value

ENDOFTEXT, IM_START, IM_END = 0, 1, 2  # SmolLM2's ids
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# SmolLM2's own template.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)

# In order of rank; Ġ is GPT-2's letter for a space.
_RANKED = (
    "Ġ t|h e|i n|Ġ a|e r|o n|Ġt he|r e|Ġ s|a t|n d|o r|e n|i s|Ġ w|e s|in g|i t|o u|Ġ o|a n|Ġa nd|Ġ b|e d|Ġ c|Ġ m|"
    "Ġ f|a l|Ġ p|Ġo f|i on|a r|Ġt o|Ġ in|s s|is t|u s|us er|a s|l l|v er"
)
MERGES = _RANKED.split("|")


@dataclass(frozen=True)
class TinySpec:
    """The numbers of a tiny model; sizes in elements.

    Attributes:
        head_dim: where it is not width / heads, the file needs key_length and value_length.
        epsilon: of the norms; about a fifth of the embedding rows have a mean square below it.
        rope_freqs: with the tensor that divides the angles, as Llama 3 has it.
        rope_factor: linear rope scaling; 0 leaves the keys out.
        attention_scale: a key that llama.cpp reads in granite and not in llama; 0 leaves it out.
        biases: stems of the blocks' linear layers that have one; True is all of them.
        tied: the output layer is the embedding.
        qk_norm: queries and keys have norms, head by head.
        qk_norm_gain: size of these norms' weights; the larger, the sharper attention is.
        post_norms: each branch has a second norm.
        post_ffw_gain: size of that norm's weights in the feed-forward.
        window: windowed layers see so many positions; 0 leaves the keys out.
        window_pattern: which layers are windowed: a flag each, or n for all but the last of every n (0 for all); None
            leaves the key out.
        window_rope_base: of the windowed layers; 0 leaves the key out.
        softcap: of the logits; 0 leaves the key out.
        gate_gain: how far what ffn_gate gives deviates.
    """

    architecture: str = "llama"
    width: int = 48
    layers: int = 3
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 10
    ffn: int = 88
    context_length: int = 256
    epsilon: float = 1e-3
    rope_base: float = 500.0
    rope_freqs: bool = False
    rope_factor: float = 0.0
    attention_scale: float = 0.0
    biases: bool | tuple[str, ...] = False
    tied: bool = True
    qk_norm: bool = False
    qk_norm_gain: float = 1.0
    post_norms: bool = False
    post_ffw_gain: float = 1.0
    window: int = 0
    window_pattern: tuple[bool, ...] | int | None = 2
    window_rope_base: float = 50.0
    softcap: float = 0.0
    gate_gain: float = 1.2

    def has_bias(self, stem: str) -> bool:
        """Whether the linear layers named so have a bias."""
        return self.biases if isinstance(self.biases, bool) else stem in self.biases


QKV = ("attn_q", "attn_k", "attn_v")
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"biases": QKV, "head_dim": 8},  # llama.cpp wants heads x head_dim equal to the width
    "qwen3": {"qk_norm": True, "qk_norm_gain": 1.3},  # as large as attn_q and attn_k make queries and keys elsewhere
    "gemma3": {
        "qk_norm": True,
        "qk_norm_gain": 1.3,
        "post_norms": True,
        "epsilon": 0.048,  # embeddings are times sqrt(48), so times 48 it matters to as many rows
        "window": 21,
        "window_pattern": 3,
        "window_rope_base": 90.0,
    },
}
"""What an architecture's files have that others have not, in tiny numbers."""


def tiny_model(path: Path, *, architecture: str, seed: int = 0, **numbers: Any) -> Path:
    """Write a random F32 model to `path` that has what each file of its architecture has.

    Args:
        path: where to write.
        architecture: as in general.architecture.
        seed: decides the weights.
        numbers: fields of TinySpec that shall differ, e.g. tied=False.
    """
    return tiny_llama(path, seed=seed, architecture=architecture, **(OWN[architecture] | numbers))


def tiny_llama(path: Path, *, seed: int = 0, **numbers: Any) -> Path:
    """Write a random F32 model to `path`, with a byte-level tokenizer and a template.

    Args:
        path: where to write.
        seed: decides the weights.
        numbers: fields of TinySpec that shall differ, e.g. biases=True.
    """
    spec = TinySpec(**numbers)
    write_gguf(path, _hyperparameters(spec) | tokenizer_metadata(), _tensors(spec, np.random.default_rng(seed)))
    return path


def random_adapter(gguf: GgufFile, rank: int = 5, seed: int = 0, scale: float = 2.5) -> Adapter:
    """A random adapter on every matrix that may have one, as large as training would make one.

    That is every matrix inside the blocks of `gguf`, and the output layer where it is not the embedding.

    B is not zero, and alpha / rank = `scale` is not 1: what hides most faults of an adapter's handling. Each pair
    adds 6 to 11 % of its matrix.
    """
    rng = np.random.default_rng(seed)
    names = [name for name, info in gguf.tensors.items() if name.startswith("blk.") and len(info.shape) == 2]
    names += [name for name in gguf.tensors if name == "output.weight"]
    pairs = {}
    for name in names:
        out, columns = gguf.tensors[name].shape
        lora_a = rng.normal(0, columns**-0.5, (rank, columns))
        lora_b = rng.normal(0, 0.08 / (scale * rank**0.5), (out, rank))
        pairs[name] = Pair(lora_a.astype(np.float32), lora_b.astype(np.float32))
    return Adapter(gguf.architecture, scale * rank, pairs)


def tokenizer_metadata() -> dict[str, Value]:
    """SmolLM2's kind of tokenizer in 300 tokens: 3 control tokens, the 256 bytes, 41 merges."""
    letters = byte_letters()
    tokens = CONTROL_TOKENS + [letters[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in MERGES]
    control, normal = 3, 1
    return {
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": (ValueType.STRING, "smollm"),
        "tokenizer.ggml.tokens": (ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": (ValueType.INT32, [control] * 3 + [normal] * (len(tokens) - 3)),
        "tokenizer.ggml.merges": (ValueType.STRING, list(MERGES)),
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, IM_START),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, IM_END),
        "tokenizer.ggml.unknown_token_id": (ValueType.UINT32, ENDOFTEXT),
        "tokenizer.ggml.padding_token_id": (ValueType.UINT32, IM_END),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, False),
        "tokenizer.ggml.add_space_prefix": (ValueType.BOOL, False),
        "tokenizer.chat_template": (ValueType.STRING, CHAT_TEMPLATE),
    }


def byte_letters() -> dict[int, str]:
    """The printable letter that GPT-2's vocabulary writes for each byte (openai/gpt-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _hyperparameters(spec: TinySpec) -> dict[str, Value]:
    uint, real = ValueType.UINT32, ValueType.FLOAT32
    numbers: dict[str, Value] = {
        "block_count": (uint, spec.layers),
        "context_length": (uint, spec.context_length),
        "embedding_length": (uint, spec.width),
        "feed_forward_length": (uint, spec.ffn),
        "attention.head_count": (uint, spec.heads),
        "attention.head_count_kv": (uint, spec.kv_heads),
        "attention.layer_norm_rms_epsilon": (real, spec.epsilon),
        "rope.freq_base": (real, spec.rope_base),
        "rope.dimension_count": (uint, spec.head_dim),
    }
    if spec.head_dim * spec.heads != spec.width:
        numbers["attention.key_length"] = (uint, spec.head_dim)
        numbers["attention.value_length"] = (uint, spec.head_dim)
    if spec.rope_factor:
        numbers["rope.scaling.type"] = (ValueType.STRING, "linear")
    for key, value in (
        ("attention.scale", spec.attention_scale),
        ("rope.scaling.factor", spec.rope_factor),
        ("final_logit_softcapping", spec.softcap),
    ):
        if value:
            numbers[key] = (real, value)
    names: dict[str, Value] = {
        "general.architecture": (ValueType.STRING, spec.architecture),
        "general.name": (ValueType.STRING, "tiny"),
    }
    return names | {f"{spec.architecture}.{key}": value for key, value in (numbers | _window(spec)).items()}


def _window(spec: TinySpec) -> dict[str, Value]:
    if not spec.window:
        return {}
    numbers: dict[str, Value] = {"attention.sliding_window": (ValueType.UINT32, spec.window)}
    if isinstance(spec.window_pattern, tuple):
        numbers["attention.sliding_window_pattern"] = (ValueType.BOOL, list(spec.window_pattern))
    elif spec.window_pattern is not None:
        numbers["attention.sliding_window_pattern"] = (ValueType.UINT32, spec.window_pattern)
    if spec.window_rope_base:
        numbers["rope.freq_base_swa"] = (ValueType.FLOAT32, spec.window_rope_base)
    return numbers


def _tensors(spec: TinySpec, rng: np.random.Generator) -> list[Tensor]:
    vocabulary = len(CONTROL_TOKENS) + 256 + len(MERGES)
    # Rows from 1 % of the usual size up to it: the first norms see mean squares on both sides of epsilon.
    sizes = 10 ** rng.uniform(-2, 0, (vocabulary, 1))
    tensors = [
        f32("token_embd.weight", sizes * rng.normal(0, 1, (vocabulary, spec.width))),
        _norm("output_norm.weight", spec.width, rng),
    ]
    if not spec.tied:
        tensors.append(_matrix("output.weight", vocabulary, spec.width, 2.0, rng))
    if spec.rope_freqs:
        tensors.append(f32("rope_freqs.weight", np.linspace(1, 4, spec.head_dim // 2)))
    for index in range(spec.layers):
        tensors += _layer(f"blk.{index}.", spec, rng)
    return tensors


def _layer(blk: str, spec: TinySpec, rng: np.random.Generator) -> list[Tensor]:
    q_rows, kv_rows, width, ffn = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.width, spec.ffn
    tensors = [_norm(blk + "attn_norm.weight", width, rng), _norm(blk + "ffn_norm.weight", width, rng)]
    for stem, out, columns, gain in (
        ("attn_q", q_rows, width, 1.3),  # scores deviate by 1.3 ** 2: attention is sharp
        ("attn_k", kv_rows, width, 1.3),
        ("attn_v", kv_rows, width, 1.0),
        ("attn_output", width, q_rows, 0.7),
        ("ffn_gate", ffn, width, spec.gate_gain),
        ("ffn_up", ffn, width, 1.0),
        ("ffn_down", width, ffn, 0.7),
    ):
        tensors.append(_matrix(f"{blk}{stem}.weight", out, columns, gain, rng))
        if spec.has_bias(stem):
            tensors.append(f32(f"{blk}{stem}.bias", rng.normal(0, 0.3, out)))
    if spec.qk_norm:
        tensors += [_norm(f"{blk}attn_{half}_norm.weight", spec.head_dim, rng, spec.qk_norm_gain) for half in "qk"]
    if spec.post_norms:
        tensors.append(_norm(blk + "post_attention_norm.weight", width, rng))
        tensors.append(_norm(blk + "post_ffw_norm.weight", width, rng, spec.post_ffw_gain))
    return tensors


def _matrix(name: str, out: int, columns: int, gain: float, rng: np.random.Generator) -> Tensor:
    """Outputs deviate by `gain` when inputs deviate by 1."""
    return f32(name, rng.normal(0, gain * columns**-0.5, (out, columns)))


def _norm(name: str, width: int, rng: np.random.Generator, gain: float = 1.0) -> Tensor:
    return f32(name, gain * rng.normal(1, 0.2, width))
