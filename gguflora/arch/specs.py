"""One spec per layer: every number and tensor name that the decoder needs, resolved and checked against the file.

Three kinds of knowledge meet here: what the metadata says (hparams.py), what only llama.cpp's code knows
(architectures.py), and what the file shows: which optional tensors it has. After this, nobody looks at the metadata
or asks for the architecture's name again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from gguflora.arch.architectures import ARCHITECTURES, RopeKind
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
    """Grouped-query attention: `heads` query heads share `kv_heads` keys and values; scores are times `scale`."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    attn_q: LinearSpec
    attn_k: LinearSpec
    attn_v: LinearSpec
    attn_output: LinearSpec


@dataclass(frozen=True)
class FfnSpec:
    """Gated feed-forward: ffn_down(silu(ffn_gate(x)) * ffn_up(x))."""

    ffn_gate: LinearSpec
    ffn_up: LinearSpec
    ffn_down: LinearSpec


@dataclass(frozen=True)
class LayerSpec:
    """One layer: norms by tensor name, what mixes positions, what works on each position."""

    attn_norm: str
    mixer: AttentionSpec
    ffn_norm: str
    ffn: FfnSpec

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
    """

    architecture: str
    width: int
    vocabulary: int
    context_length: int
    epsilon: float
    token_embd: str
    layers: tuple[LayerSpec, ...]
    output_norm: str
    output: LinearSpec
    tied: bool

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
    _check_llama_cpp_limits(gguf, hparams)
    tensors = _Tensors(gguf)
    spec = _model(gguf.architecture, hparams, row.rope, tensors)
    tensors.refuse_unused()
    return spec


def _unknown_architecture(gguf: GgufFile) -> str:
    known = ", ".join(sorted(ARCHITECTURES))
    if not gguf.architecture:
        return f"{gguf.path} does not say its architecture (general.architecture): it is no model."
    return f"{gguf.path}: architecture {gguf.architecture!r} is not supported; supported: {known}."


def _check_llama_cpp_limits(gguf: GgufFile, hparams: HParams) -> None:
    # src/models/llama.cpp, graph: GGML_ASSERT(n_embd_head == n_embd_head_k), GGML_ASSERT(n_embd_head == n_rot)
    if not hparams.key_length == hparams.value_length == hparams.rope_dimension_count:
        raise FileError(
            f"{gguf.path}: heads of {hparams.key_length} (keys), {hparams.value_length} (values) and "
            f"{hparams.rope_dimension_count} (rope) elements; llama.cpp needs the three equal."
        )


def _model(architecture: str, hparams: HParams, rope: RopeKind, tensors: _Tensors) -> ModelSpec:
    width = hparams.embedding_length
    vocabulary = tensors.rows_of("token_embd.weight", width)
    layers = tuple(_layer(index, hparams, rope, tensors) for index in range(hparams.block_count))
    tied = "output.weight" not in tensors
    return ModelSpec(
        architecture=architecture,
        width=width,
        vocabulary=vocabulary,
        context_length=hparams.context_length,
        epsilon=hparams.layer_norm_rms_epsilon,
        token_embd="token_embd.weight",
        layers=layers,
        output_norm=tensors.require("output_norm.weight", (width,)),
        output=tensors.linear("token_embd" if tied else "output", vocabulary, width),
        tied=tied,
    )


def _layer(index: int, hparams: HParams, rope: RopeKind, tensors: _Tensors) -> LayerSpec:
    width, ff, head_dim = hparams.embedding_length, hparams.feed_forward_length, hparams.key_length
    q_rows, kv_rows = hparams.head_count * head_dim, hparams.head_count_kv * head_dim
    blk = f"blk.{index}."
    return LayerSpec(
        attn_norm=tensors.require(blk + "attn_norm.weight", (width,)),
        mixer=AttentionSpec(
            heads=hparams.head_count,
            kv_heads=hparams.head_count_kv,
            head_dim=head_dim,
            scale=head_dim**-0.5,  # llama.cpp reads attention.scale for granite and dflash alone
            rope=RopeSpec(
                kind=rope,
                dim=hparams.rope_dimension_count,
                base=hparams.rope_freq_base,
                scale=hparams.rope_freq_scale,
                factors=tensors.optional("rope_freqs.weight", (hparams.rope_dimension_count // 2,)),
            ),
            attn_q=tensors.linear(blk + "attn_q", q_rows, width),
            attn_k=tensors.linear(blk + "attn_k", kv_rows, width),
            attn_v=tensors.linear(blk + "attn_v", kv_rows, width),
            attn_output=tensors.linear(blk + "attn_output", width, q_rows),
        ),
        ffn_norm=tensors.require(blk + "ffn_norm.weight", (width,)),
        ffn=FfnSpec(
            ffn_gate=tensors.linear(blk + "ffn_gate", ff, width),
            ffn_up=tensors.linear(blk + "ffn_up", ff, width),
            ffn_down=tensors.linear(blk + "ffn_down", width, ff),
        ),
    )


class _Tensors:
    """The file's tensors, checked as they are asked for, and which of them were asked for."""

    def __init__(self, gguf: GgufFile) -> None:
        self.gguf = gguf
        self.used: set[str] = set()

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

    def rows_of(self, name: str, columns: int) -> int:
        info = self.gguf.tensors.get(name)
        rows = info.shape[0] if info else 0
        self.require(name, (rows, columns))
        return rows

    def linear(self, stem: str, out: int, columns: int) -> LinearSpec:
        return LinearSpec(
            name=self.require(stem + ".weight", (out, columns)),
            shape=(out, columns),
            bias=self.optional(stem + ".bias", (out,)),
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
