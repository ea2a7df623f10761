"""One spec per layer: every number and tensor name that the decoder needs, resolved and checked against the file.

Three kinds of knowledge meet here: what the metadata says (hparams.py), what only llama.cpp's code knows
(architectures.py), and what the file shows: which optional tensors it has. After this, nobody looks at the metadata
or asks for the architecture's name again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gguflora.arch.architectures import ARCHITECTURES, TIED_PAIRS, Activation, Architecture, Effect, RopeKind
from gguflora.arch.hparams import HParams, read_hparams
from gguflora.errors import FileError, ModelError
from gguflora.gguf import GgufFile


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer: tensor name (blk.0.attn_q.weight), shape (out, in), and its bias's name if it has one."""

    name: str
    shape: tuple[int, int]
    bias: str | None

    @property
    def stem(self) -> str:
        """The part of the name that says which layer it is: attn_q, ffn_down, output."""
        return self.name.removesuffix(".weight").rsplit(".", 1)[-1]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding of a layer.

    Attributes:
        dim: elements of a head that turn.
        base: theta of pair i is base ** (-2i / dim), times `scale`, divided by the i-th of `factors`.
        factors: name of a tensor (dim / 2,), or None.
    """

    kind: RopeKind
    dim: int
    base: float
    scale: float
    factors: str | None


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention: `heads` query heads share `kv_heads` keys and values; scores are times `scale`.

    Attributes:
        window: a position sees itself and the window - 1 before it; None is all before it.
        attn_q_norm: RMS norm of each query head before rope, (head_dim,); attn_k_norm of each key head; or None.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    window: int | None
    attn_q_norm: str | None
    attn_k_norm: str | None
    attn_q: LinearSpec
    attn_k: LinearSpec
    attn_v: LinearSpec
    attn_output: LinearSpec


@dataclass(frozen=True)
class FfnSpec:
    """Gated feed-forward: ffn_down(activation(ffn_gate(x)) * ffn_up(x))."""

    activation: Activation
    ffn_gate: LinearSpec
    ffn_up: LinearSpec
    ffn_down: LinearSpec


@dataclass(frozen=True)
class LayerSpec:
    """One layer: norms by tensor name, what mixes positions, what works on each position.

    Attributes:
        post_attention_norm: norm of the mixer's result before it is added to the residual, or None.
        post_ffw_norm: the same for the feed-forward's.
    """

    attn_norm: str
    mixer: AttentionSpec
    post_attention_norm: str | None
    ffn_norm: str
    ffn: FfnSpec
    post_ffw_norm: str | None

    def linears(self) -> tuple[LinearSpec, ...]:
        """The layer's linear layers, in the order of the computation."""
        m, f = self.mixer, self.ffn
        return (m.attn_q, m.attn_k, m.attn_v, m.attn_output, f.ffn_gate, f.ffn_up, f.ffn_down)


@dataclass(frozen=True)
class ModelSpec:
    """A whole model.

    Attributes:
        vocabulary: rows of the embedding.
        tied: the output layer is the embedding itself (`output` then names token_embd.weight).
        embedding_scale: factor of every embedding.
        softcap: logits are softcap * tanh(logits / softcap), or None.
        pairs: what llama.cpp does with a pair on each of the file's tensors, by stem.
    """

    architecture: str
    width: int
    vocabulary: int
    context_length: int
    epsilon: float
    embedding_scale: float
    softcap: float | None
    token_embd: str
    layers: tuple[LayerSpec, ...]
    output_norm: str
    output: LinearSpec
    tied: bool
    pairs: Mapping[str, Effect]

    def linears(self) -> Iterator[LinearSpec]:
        """Every linear layer, in the order of the computation; the output layer only where it is not tied."""
        for layer in self.layers:
            yield from layer.linears()
        if not self.tied:
            yield self.output


def model_spec(gguf: GgufFile) -> ModelSpec:
    """Resolve `gguf` to a ModelSpec, having checked that each tensor is there, has its shape, and is understood.

    Raises:
        ModelError: the architecture or one of its tensors is not supported.
        FileError: a required key or tensor is missing, or a tensor has the wrong shape.
    """
    row = ARCHITECTURES.get(gguf.architecture)
    if row is None:
        raise ModelError(_unknown_architecture(gguf))
    hparams = read_hparams(gguf)
    _check_llama_cpp_limits(gguf, row, hparams)
    _refuse_fused(gguf)
    tensors = _Tensors(gguf, row.biases)
    spec = _model(row, hparams, tensors)
    tensors.refuse_unused()
    return spec


def _unknown_architecture(gguf: GgufFile) -> str:
    known = ", ".join(sorted(ARCHITECTURES))
    if not gguf.architecture:
        return f"{gguf.path} does not say its architecture (general.architecture): it is no model."
    return f"{gguf.path}: architecture {gguf.architecture!r} is not supported; supported: {known}."


def _check_llama_cpp_limits(gguf: GgufFile, row: Architecture, hparams: HParams) -> None:
    # src/models/llama.cpp, graph: GGML_ASSERT(n_embd_head == n_embd_head_k), GGML_ASSERT(n_embd_head == n_rot)
    if not hparams.key_length == hparams.value_length == hparams.rope_dimension_count:
        raise FileError(
            f"{gguf.path}: heads of {hparams.key_length} (keys), {hparams.value_length} (values) and "
            f"{hparams.rope_dimension_count} (rope) elements; llama.cpp needs the three equal."
        )
    # llama.cpp keeps a cache for the layers with a window and one for the others (src/llama-kv-cache-iswa.cpp); without
    # any windowed layer the process ends when a context is made (seen with xllamacpp 2026.10.11549).
    windowed = any(_is_windowed(index, row, hparams) for index in range(hparams.block_count))
    if row.window_pattern and hparams.sliding_window and not windowed:
        raise FileError(f"{gguf.path} names a sliding window but no layer that has it; llama.cpp aborts on it.")


def _refuse_fused(gguf: GgufFile) -> None:
    # llama.cpp takes either form in every architecture (create_tensor_qkv in src/llama-model.cpp).
    for name in gguf.tensors:
        if name.endswith(".attn_qkv.weight"):
            raise ModelError(
                f"{gguf.path}: tensor {name} holds queries, keys and values in one, which is not supported yet; "
                "use a file that has attn_q, attn_k and attn_v."
            )


def _model(row: Architecture, hparams: HParams, tensors: _Tensors) -> ModelSpec:
    width = hparams.embedding_length
    vocabulary = tensors.rows_of("token_embd.weight", width)
    tied = "output.weight" not in tensors
    return ModelSpec(
        architecture=row.name,
        width=width,
        vocabulary=vocabulary,
        context_length=hparams.context_length,
        epsilon=hparams.layer_norm_rms_epsilon,
        embedding_scale=width**0.5 if row.scaled_embedding else 1.0,
        softcap=hparams.final_logit_softcapping or None,
        token_embd="token_embd.weight",
        layers=tuple(_layer(index, row, hparams, tensors) for index in range(hparams.block_count)),
        output_norm=tensors.require("output_norm.weight", (width,)),
        output=tensors.linear("token_embd" if tied else "output", vocabulary, width),
        tied=tied,
        pairs={stem: effect for stem, effect in row.pairs.items() if stem in tensors.stems}
        | (TIED_PAIRS if tied else {}),
    )


def _layer(index: int, row: Architecture, hparams: HParams, tensors: _Tensors) -> LayerSpec:
    width, ff = hparams.embedding_length, hparams.feed_forward_length
    blk = f"blk.{index}."
    return LayerSpec(
        attn_norm=tensors.require(blk + "attn_norm.weight", (width,)),
        mixer=_attention(index, row, hparams, tensors),
        post_attention_norm=tensors.norm(blk + "post_attention_norm", width, row.post_norms),
        ffn_norm=tensors.require(blk + "ffn_norm.weight", (width,)),
        ffn=FfnSpec(
            activation=row.activation,
            ffn_gate=tensors.linear(blk + "ffn_gate", ff, width),
            ffn_up=tensors.linear(blk + "ffn_up", ff, width),
            ffn_down=tensors.linear(blk + "ffn_down", width, ff),
        ),
        post_ffw_norm=tensors.norm(blk + "post_ffw_norm", width, row.post_norms),
    )


def _attention(index: int, row: Architecture, hparams: HParams, tensors: _Tensors) -> AttentionSpec:
    width, head_dim = hparams.embedding_length, hparams.key_length
    q_rows, kv_rows = hparams.head_count * head_dim, hparams.head_count_kv * head_dim
    windowed = _is_windowed(index, row, hparams)
    blk = f"blk.{index}."
    scaled_width = width // hparams.head_count if hparams.block_count == row.width_scaled_at else head_dim
    return AttentionSpec(
        heads=hparams.head_count,
        kv_heads=hparams.head_count_kv,
        head_dim=head_dim,
        scale=scaled_width**-0.5,  # llama.cpp reads attention.scale for granite and dflash alone
        rope=_rope(row, hparams, windowed, tensors),
        window=hparams.sliding_window if windowed else None,
        attn_q_norm=tensors.norm(blk + "attn_q_norm", head_dim, row.qk_norm),
        attn_k_norm=tensors.norm(blk + "attn_k_norm", head_dim, row.qk_norm),
        attn_q=tensors.linear(blk + "attn_q", q_rows, width),
        attn_k=tensors.linear(blk + "attn_k", kv_rows, width),
        attn_v=tensors.linear(blk + "attn_v", kv_rows, width),
        attn_output=tensors.linear(blk + "attn_output", width, q_rows),
    )


def _rope(row: Architecture, hparams: HParams, windowed: bool, tensors: _Tensors) -> RopeSpec:
    # Layers with a window have a base of their own and no scaling (llama-hparams.h, rope_freq_scale_train_swa).
    dim = hparams.rope_dimension_count
    return RopeSpec(
        kind=row.rope,
        dim=dim,
        base=hparams.rope_freq_base_swa if windowed else hparams.rope_freq_base,
        scale=1.0 if windowed else hparams.rope_freq_scale,
        factors=tensors.optional("rope_freqs.weight", (dim // 2,)) if row.rope_freqs else None,
    )


def _is_windowed(index: int, row: Architecture, hparams: HParams) -> bool:
    if row.window_pattern is None or not hparams.sliding_window:
        return False
    pattern = hparams.sliding_window_pattern
    if isinstance(pattern, tuple):
        return pattern[index]
    every = row.window_pattern if pattern is None else pattern
    return every == 0 or index % every < every - 1  # llama-hparams.cpp, set_swa_pattern


class _Tensors:
    """The file's tensors, checked as they are asked for, and which of them were asked for."""

    def __init__(self, gguf: GgufFile, biases: frozenset[str]) -> None:
        self.gguf = gguf
        self.biases = biases
        self.used: set[str] = set()

    @property
    def stems(self) -> set[str]:
        return {name.removesuffix(".weight").rsplit(".", 1)[-1] for name in self.gguf.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self.gguf.tensors

    def optional(self, name: str, shape: tuple[int, ...]) -> str | None:
        return self.require(name, shape) if name in self else None

    def require(self, name: str, shape: tuple[int, ...]) -> str:
        info = self.gguf.tensors.get(name)
        if info is None:
            raise FileError(f"{self.gguf.path}: tensor {name} is missing.")
        if info.shape != shape:
            raise FileError(f"{self.gguf.path}: tensor {name} has shape {info.shape}, its model needs {shape}.")
        self.used.add(name)
        return name

    def norm(self, stem: str, size: int, wanted: bool) -> str | None:
        return self.require(stem + ".weight", (size,)) if wanted else None

    def rows_of(self, name: str, columns: int) -> int:
        info = self.gguf.tensors.get(name)
        rows = info.shape[0] if info else 0
        self.require(name, (rows, columns))
        return rows

    def linear(self, stem: str, out: int, columns: int) -> LinearSpec:
        return LinearSpec(
            name=self.require(stem + ".weight", (out, columns)),
            shape=(out, columns),
            bias=self.optional(stem + ".bias", (out,)) if stem.rsplit(".", 1)[-1] in self.biases else None,
        )

    def refuse_unused(self) -> None:
        # A tensor that is left over belongs to a graph that we would compute wrongly.
        for name in self.gguf.tensors:
            if name not in self.used:
                near = difflib.get_close_matches(name, self.used, n=1)
                hint = f" (nearest known: {near[0]})" if near else ""
                raise ModelError(
                    f"{self.gguf.path}: tensor {name} is not part of the {self.gguf.architecture} models that are "
                    f"supported{hint}."
                )
