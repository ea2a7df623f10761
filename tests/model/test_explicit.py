"""The explicit forward and backward is autograd through the reference, and its buffers carry nothing from row to row.

Blocks of attention and chunks of the head are small here, so that a tiny row has several of each.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as gguf_py
import pytest
import torch
from torch import Tensor

from gguflora.data import pack
from gguflora.errors import FileError
from gguflora.gguf import GgmlType, GgufFile, ValueType, open_gguf, write_gguf
from gguflora.gguf.writer import Tensor as FileTensor
from gguflora.kernels.attention import explicit as attention
from gguflora.kernels.head_loss import explicit as head
from gguflora.model import Dropout, LoraPair, PackedRow, Workspace, row_loss, row_nll, with_pairs
from gguflora.model import decoder as decoder_module
from gguflora.train import Method, named_parameters
from gguflora.train.step import packed_row
from tests.numerics import assert_as_exact, assert_close
from tests.tiny import tiny_llama
from tests.tiny_training import (
    EVERYTHING,
    PATCHED,
    SCALE,
    Tiny,
    computed,
    examples,
    load_tiny,
    measured,
    method_named,
    take_gradients,
    tiny,
)

pytestmark = pytest.mark.usefixtures("one_thread", "patched")

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": EVERYTHING,
    "qwen2": {"architecture": "qwen2", "biases": ("attn_q", "attn_k", "attn_v")},
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
    "gemma3": {"architecture": "gemma3", "qk_norm": True, "post_norms": True, "window": 11, "softcap": 5.0},
    "every option": PATCHED,
}
ALL_MODELS = pytest.mark.parametrize("numbers", MODELS.values(), ids=MODELS)
RICH_MODELS = pytest.mark.parametrize("numbers", [EVERYTHING, PATCHED], ids=["everything", "every option"])
EXPLICIT = pytest.mark.parametrize("name", ["explicit", "recompute"])
VERSION = pytest.mark.parametrize("name", ["explicit", "compiled"])
DROPOUT = pytest.mark.parametrize("rate", [0.0, 0.3], ids=["", "dropout"])


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 8)
    monkeypatch.setattr(head, "chunk_rows", lambda _: 5)


def row_of(lengths: tuple[int, ...] = (3, 21, 2, 17), rate: float = 0.0, seed: int = 0) -> PackedRow:
    """Documents of so many tokens, about half of them trained, each document with a weight of its own."""
    weights = tuple(0.5 + index for index in range(len(lengths)))
    row = packed_row(pack(examples(lengths, weights, seed), 1000)[0])
    if not rate:
        return row
    documents = tuple(range(len(lengths)))
    return replace(row, dropout=Dropout(rate, seed, 4, documents, tuple(row.document_starts)))


def outcome(model: Tiny, row: PackedRow, method: Method, factor: float = 0.3) -> dict[str, Tensor]:
    """Loss, nll and every gradient of a row."""
    loss, nll = computed(model.decoder, row, method, factor)
    return {"loss": torch.tensor(loss), "nll": nll} | take_gradients(model.pairs)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# --- it is autograd ---


@ALL_MODELS
@EXPLICIT
@DROPOUT
def test_it_is_autograd_in_float64(tmp_path: Path, numbers: dict[str, Any], name: str, rate: float) -> None:
    model, row = tiny(tmp_path, torch.float64, **numbers), row_of(rate=rate)
    expected = outcome(model, row, Method(None))
    found = outcome(model, row, method_named(name))
    assert found.keys() == expected.keys()
    assert len(found) >= 2 + 2 * 21
    for tensor, value in found.items():
        assert_close(value, expected[tensor], 1e-12, tensor)  # float64 rounds at 1e-16


@ALL_MODELS
@DROPOUT
@VERSION
def test_it_is_autograd_in_float32(tmp_path: Path, numbers: dict[str, Any], rate: float, name: str) -> None:
    model, row = tiny(tmp_path, torch.float32, **numbers), row_of(rate=rate)
    expected = outcome(model, row, Method(None))
    for tensor, value in outcome(model, row, method_named(name)).items():
        assert_close(value, expected[tensor], 1e-5, tensor)  # float32 rounds at 6e-8


@RICH_MODELS
@DROPOUT
@VERSION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_errs_at_most_twice_as_much_as_autograd(
    tmp_path: Path, numbers: dict[str, Any], rate: float, dtype: torch.dtype, name: str
) -> None:
    """Of a whole row, against the same weights in float64; all pairs of a kind together, for little luck."""
    row = row_of((40, 23, 38), rate)
    exact_model, model = (tiny(tmp_path, its, **numbers) for its in (torch.float64, dtype))
    sides = outcome(model, row, method_named(name)), outcome(model, row, Method(None))
    fast, plain, exact = map(by_kind, (*sides, outcome(exact_model, row, Method(None))))
    for kind, values in fast.items():
        ratio = assert_as_exact(values, plain[kind], exact[kind], kind)
        print(f"{kind} {dtype}: {ratio:.2f} times plain PyTorch's error")


def by_kind(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """nll, and the gradients of each kind of half (attn_q.weight.lora_a) of all layers."""
    kinds: dict[str, list[Tensor]] = {"nll": [results["nll"]]}
    for name in results.keys() - {"loss", "nll"}:
        kinds.setdefault(name.split(".", 2)[-1] if name.startswith("blk.") else name, []).append(results[name])
    return {kind: torch.cat([part.flatten() for part in parts]) for kind, parts in kinds.items()}


@EXPLICIT
@RICH_MODELS
def test_what_the_layers_begin_with_gets_autograds_gradient(
    tmp_path: Path, numbers: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pair lies below the first layer, so no gradient of a pair shows this end of the backward."""
    model, row, method = tiny(tmp_path, torch.float64, **numbers), row_of(), method_named(name)
    computed(model.decoder, row, method)
    assert method.work
    found = method.work.take("dh", (len(row.tokens), model.spec.width), torch.float64)
    embeddings = decoder_module.embed(model.decoder, row.tokens).requires_grad_()
    monkeypatch.setattr(decoder_module, "embed", lambda _decoder, _tokens: embeddings)
    [expected] = torch.autograd.grad(row_loss(model.decoder, row)[0], [embeddings])
    assert_close(found, expected, 1e-12)


# --- which pairs there are ---

SUBSETS = {
    "attn_k alone": ("attn_k",),
    "a gap in q, k, v": ("attn_q", "attn_v"),
    "attn_output": ("attn_output",),
    "ffn_up alone": ("ffn_up",),
    "ffn_down": ("ffn_down",),
    "the head": ("output",),
}


@EXPLICIT
@DROPOUT
@pytest.mark.parametrize("stems", SUBSETS.values(), ids=SUBSETS)
def test_any_subset_of_targets_gets_autograds_gradients(
    tmp_path: Path, name: str, rate: float, stems: tuple[str, ...]
) -> None:
    whole, row = tiny(tmp_path, torch.float64, **PATCHED), row_of(rate=rate)
    pairs = {name: pair for name, pair in whole.pairs.items() if name.split(".")[-2] in stems}
    assert len(pairs) == (1 if stems == ("output",) else 3 * len(stems))
    model = replace(whole, pairs=pairs, decoder=with_pairs(whole.base, pairs, SCALE))
    expected = outcome(model, row, Method(None))
    for tensor, value in outcome(model, row, method_named(name)).items():
        assert_close(value, expected[tensor], 1e-12, tensor)
    assert all(parameter.grad is None for _, parameter in named_parameters(whole.pairs))


@EXPLICIT
def test_pairs_that_share_an_input_may_be_of_different_ranks(tmp_path: Path, name: str) -> None:
    whole, row = tiny(tmp_path, torch.float64, **PATCHED), row_of(rate=0.3)
    pairs = {
        tensor: LoraPair(
            *(half.detach().clone().requires_grad_() for half in (pair.lora_a[:rank], pair.lora_b[:, :rank]))
        )
        for rank, (tensor, pair) in zip([3, 1, 5, 2, 4] * 5, whole.pairs.items(), strict=False)
    }
    model = replace(whole, pairs=pairs, decoder=with_pairs(whole.base, pairs, SCALE))
    expected = outcome(model, row, Method(None))
    for tensor, value in outcome(model, row, method_named(name)).items():
        assert_close(value, expected[tensor], 1e-12, tensor)


@EXPLICIT
def test_gradients_are_added_to_those_that_are_there(tmp_path: Path, name: str) -> None:
    model, method = tiny(tmp_path, torch.float64, **PATCHED), method_named(name)
    rows = [row_of(seed=seed) for seed in (0, 1)]
    each = [outcome(model, row, method) for row in rows]
    for row in rows:
        computed(model.decoder, row, method, 0.3)
    for tensor, gradient in take_gradients(model.pairs).items():
        assert torch.equal(gradient, each[0][tensor] + each[1][tensor]), tensor


def test_the_bare_base_has_a_loss_and_no_gradients(tmp_path: Path) -> None:
    model, row = tiny(tmp_path, torch.float64, **PATCHED), row_of()
    assert model.base.output.pair is None
    loss, nll = computed(model.base, row, method_named("explicit"))
    expected, theirs = row_loss(model.base, row)
    assert_close(nll, theirs, 1e-12)
    assert loss == pytest.approx(float(expected), rel=1e-12)


@DROPOUT
@RICH_MODELS
def test_a_row_without_a_trained_token_has_no_loss_and_teaches_nothing(
    tmp_path: Path, numbers: dict[str, Any], rate: float, method: Method
) -> None:
    model, row = tiny(tmp_path, torch.float32, **numbers), row_of(rate=rate)
    found = outcome(model, replace(row, labels=torch.full_like(row.labels, -100)), method)
    assert found.pop("nll").shape == (0,)
    assert {name for name, value in found.items() if value.count_nonzero()} == set()
    assert measured(model.decoder, replace(row, labels=torch.full_like(row.labels, -100)), method).shape == (0,)


# --- its buffers ---


@EXPLICIT
@RICH_MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_in_the_buffers_changes_no_bit(
    tmp_path: Path, numbers: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    """NaN in each of them between two rows; a longer row, a shorter one, a measurement before: all the same."""
    model, row = tiny(tmp_path, dtype, **numbers), row_of(rate=0.3)
    fresh = outcome(model, row, method_named(name))
    used = method_named(name)
    assert used.work
    for before in (row, row_of((60, 50), 0.3, seed=1), row_of((4,), seed=2)):
        outcome(model, before, used)
        assert same_bits(outcome(model, row, used), fresh)
        measured(model.decoder, before, used)
        assert same_bits(outcome(model, row, used), fresh)
        used.work.poison()
        assert same_bits(outcome(model, row, used), fresh)
    assert not same_bits(outcome(model, row_of(rate=0.3, seed=1), used), fresh)  # the control: another row shows


@RICH_MODELS
def test_measuring_needs_nothing_that_is_in_the_buffers(tmp_path: Path, numbers: dict[str, Any]) -> None:
    model, row = tiny(tmp_path, torch.float32, **numbers), row_of()
    work = Workspace(64)
    fresh = row_nll(model.decoder, row, work)
    work.poison()
    assert torch.equal(row_nll(model.decoder, row, work), fresh)
    assert torch.equal(computed(model.decoder, row, Method(work))[1], fresh)
    take_gradients(model.pairs)


def test_poison_reaches_every_buffer(tmp_path: Path) -> None:
    """So that the tests above mean something: afterwards no buffer holds a number."""
    model, work = tiny(tmp_path, torch.float32, packed=True, **PATCHED), Workspace(64)
    computed(model.decoder, row_of(), Method(work))
    work.poison()
    buffers = list(work._buffers.values())
    assert len(buffers) > 20
    assert all(buffer.isnan().all() for buffer in buffers)
    assert work.nbytes == sum(buffer.numel() * buffer.itemsize for buffer in buffers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@RICH_MODELS
def test_recomputing_changes_no_bit_and_takes_less_memory(
    tmp_path: Path, numbers: dict[str, Any], dtype: torch.dtype
) -> None:
    model, row = tiny(tmp_path, dtype, **numbers), row_of((40, 23), rate=0.3)
    stored, recomputing = method_named("explicit"), method_named("recompute")
    assert same_bits(outcome(model, row, stored), outcome(model, row, recomputing))
    assert stored.work
    assert recomputing.work
    # Of three layers' buffers two are spared; what is left is the layers' inputs and what a backward works in.
    assert recomputing.work.nbytes < 0.8 * stored.work.nbytes


def test_rows_that_fit_make_no_buffer_grow(tmp_path: Path) -> None:
    model, work = tiny(tmp_path, torch.float32, **PATCHED), Workspace(64)
    computed(model.decoder, row_of((20,)), Method(work))
    before = work.nbytes
    computed(model.decoder, row_of((30, 34), seed=1), Method(work))
    assert work.nbytes == before


# --- packed weights ---

# Rows are whole blocks of 32 elements.
WHOLE_BLOCKS = {"width": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 24}
MIXED = {"attn_k": GgmlType.Q8_0, "attn_v": GgmlType.Q4_1, "ffn_up": GgmlType.Q4_1, "token_embd": GgmlType.Q8_0}


def quantised(path: Path, types: dict[str, GgmlType], default: GgmlType) -> GgufFile:
    """A tiny model whose matrices gguf-py has quantised: those named by stem to their type, the others to `default`."""
    source = open_gguf(tiny_llama(path / "f32.gguf", **PATCHED, **WHOLE_BLOCKS))
    metadata = {
        key: (source.metadata.value_type(key) or ValueType.STRING, source.metadata[key]) for key in source.metadata
    }
    tensors = []
    for name, info in source.tensors.items():
        values = source.raw(name).view("<f4").reshape(info.shape)
        type = types.get(name.split(".")[-2], default) if len(info.shape) == 2 else GgmlType.F32
        data = gguf_py.quants.quantize(values, gguf_py.GGMLQuantizationType(int(type)))
        tensors.append(FileTensor(name, type, info.shape, data))
    write_gguf(path / "quantised.gguf", metadata, tensors)
    return open_gguf(path / "quantised.gguf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("types", "default"),
    [({}, GgmlType.F32), ({}, GgmlType.BF16), ({}, GgmlType.Q4_1), ({}, GgmlType.Q8_0), (MIXED, GgmlType.F32)],
    ids=["F32", "BF16", "Q4_1", "Q8_0", "mixed"],
)
def test_packed_weights_give_the_bits_of_resident_ones(
    tmp_path: Path, method: Method, types: dict[str, GgmlType], default: GgmlType, dtype: torch.dtype
) -> None:
    file, row = quantised(tmp_path, types, default), row_of(rate=0.3)
    resident, packed = (load_tiny(file, dtype, packed) for packed in (False, True))
    assert same_bits(outcome(packed, row, method), outcome(resident, row, method))
    assert torch.equal(measured(packed.decoder, row, method), measured(resident.decoder, row, method))


def value_type(source: GgufFile, key: str) -> ValueType:
    found = source.metadata.value_type(key)
    assert found is not None
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["resident", "packed"])
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.attn_k.weight", "blk.2.ffn_down.weight", "output.weight"])
def test_a_block_whose_scale_is_not_finite_is_refused_by_its_tensors_name(
    tmp_path: Path, name: str, packed: bool
) -> None:
    file = quantised(tmp_path, {}, GgmlType.Q8_0)
    spoilt = bytearray(file.path.read_bytes())
    raw = bytes(file.raw(name))
    assert spoilt.count(raw) == 1
    last_block = spoilt.index(raw) + len(raw) - 34
    spoilt[last_block : last_block + 2] = b"\x00\x7c"  # an infinite float16
    (tmp_path / "spoilt.gguf").write_bytes(spoilt)
    with pytest.raises(FileError, match=rf"spoilt\.gguf: tensor {re.escape(name)} holds values that are not finite"):
        load_tiny(open_gguf(tmp_path / "spoilt.gguf"), torch.float32, packed)


def test_quantising_shows(tmp_path: Path) -> None:
    """So that the test above is about blocks, and not about a file that holds the same numbers."""
    row, losses = row_of(), []
    for default in (GgmlType.F32, GgmlType.Q8_0, GgmlType.Q4_1):
        losses.append(measured(load_tiny(quantised(tmp_path, {}, default), torch.float32).base, row, Method(None)))
    assert 1e-4 < (losses[1] - losses[0]).abs().mean() < (losses[2] - losses[0]).abs().mean() < 1


@EXPLICIT
def test_packed_weights_are_autograd_too(tmp_path: Path, name: str) -> None:
    model, row = load_tiny(quantised(tmp_path, MIXED, GgmlType.Q4_1), torch.float64, packed=True), row_of(rate=0.3)
    expected = outcome(model, row, Method(None))
    for tensor, value in outcome(model, row, method_named(name)).items():
        assert_close(value, expected[tensor], 1e-12, tensor)
