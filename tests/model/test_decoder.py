"""Packed documents don't see each other, the loss is what its definition says, and training moves the pairs alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguflora.config import TrainingConfig
from gguflora.data import pack
from gguflora.model import Decoder, LoraPair, PackedRow, logits, row_loss, with_pairs
from gguflora.model import decoder as decoder_module
from gguflora.train import Job, Method, new_state, train
from gguflora.train.step import packed_row
from tests.numerics import assert_close, finite, log_softmax
from tests.tiny_training import EVERYTHING, SCALE, Tiny, computed, examples, measured, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
STARTS = [0, 17, 30, 41]
POSITIONS = torch.cat([torch.arange(end - start) for start, end in pairwise(STARTS)])


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 300, (STARTS[-1],), generator=torch.Generator().manual_seed(seed))


def row_of(tokens: Tensor, labelled: list[int]) -> PackedRow:
    """The three documents with the tokens at `labelled` trained, each with a weight of its own."""
    labels = torch.full_like(tokens, -100)
    labels[labelled] = tokens[labelled]
    return PackedRow(tokens, POSITIONS, STARTS, labels, torch.linspace(0.25, 3, len(tokens), dtype=torch.float64))


def inner(start: int, end: int) -> list[int]:
    """All positions of a document that can be labelled."""
    return list(range(start + 1, end))


@DTYPES
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_document_leaves_the_logits_as_they_are_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, changed: int
) -> None:
    """Other tokens in one document, as many of them: no bit of the others' logits moves."""
    model = tiny(tmp_path, dtype)
    start, end = STARTS[changed], STARTS[changed + 1]
    before, after = tokens(0), tokens(0)
    after[start:end] = tokens(1)[start:end]
    with torch.no_grad():
        one, other = (logits(model.decoder, row, POSITIONS, STARTS) for row in (before, after))
    assert torch.equal(one[:start], other[:start])
    assert torch.equal(one[end:], other[end:])
    assert not torch.equal(one[start:end], other[start:end])


@DTYPES
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_document_leaves_the_losses_as_they_are_to_the_bit(
    tmp_path: Path, method: Method, dtype: torch.dtype, changed: int
) -> None:
    """The same of what training computes: with gradients and without."""
    model = tiny(tmp_path, dtype)
    documents = list(pairwise(STARTS))
    after = tokens(0)
    after[slice(*documents[changed])] = tokens(1)[slice(*documents[changed])]
    trained = [(document, position) for document in documents for position in inner(*document)]
    untouched = torch.tensor([document != documents[changed] for document, _ in trained])
    rows = [row_of(row, [position for _, position in trained]) for row in (tokens(0), after)]
    for one, other in (
        [measured(model.decoder, row, method) for row in rows],
        [computed(model.decoder, row, method)[1] for row in rows],
    ):
        assert torch.equal(one[untouched], other[untouched])
        assert not torch.equal(one[~untouched], other[~untouched])


def test_another_document_teaches_nothing_about_this_one(
    tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss in document 2 has no gradient with respect to document 1's embeddings, in packed layers."""
    model = tiny(tmp_path, torch.float32)
    gradient = gradient_of_embeddings(model, row_of(tokens(0), inner(17, 30)), method, monkeypatch)
    assert gradient[17:29].any(dim=1).all()
    assert not gradient[:17].any()
    assert not gradient[29:].any()  # what the document's last token is, it is too late to use


def gradient_of_embeddings(model: Tiny, row: PackedRow, method: Method, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The gradient (T, D) of a row's loss with respect to what the layers begin with."""
    if method.work is not None:
        computed(model.decoder, row, method)
        # the buffer that the explicit backward walks down with: after the first layer it is the embeddings'
        return method.work.take("dh", (len(row.tokens), model.spec.width), torch.float32)
    embeddings = decoder_module.embed(model.decoder, row.tokens).requires_grad_()
    monkeypatch.setattr(decoder_module, "embed", lambda _decoder, _tokens: embeddings)
    [gradient] = torch.autograd.grad(row_loss(model.decoder, row)[0], [embeddings])
    return gradient


def test_an_example_loses_as_much_packed_as_alone(tmp_path: Path, method: Method) -> None:
    model = tiny(tmp_path, torch.float32)
    encoded = examples()
    [row] = pack(encoded, 1000)
    packed = measured(model.decoder, packed_row(row), method)
    alone = [measured(model.decoder, packed_row(pack([example], 1000)[0]), method) for example in encoded]
    borders = np.cumsum([len(nll) for nll in alone])[:-1]
    for together, by_itself in zip(np.split(packed.numpy(), borders), alone, strict=True):
        assert_close(together, by_itself, 1e-5)  # float32: other sizes of matrix add up in another order


def test_positions_count_within_a_document(tmp_path: Path) -> None:
    """The second document's logits are those it has alone, so it starts at position 0 again."""
    model = tiny(tmp_path, torch.float32)
    row = tokens(0)
    with torch.no_grad():
        packed = logits(model.decoder, row, POSITIONS, STARTS)[17:30]
        alone = logits(model.decoder, row[17:30], torch.arange(13), [0, 13])
        late = logits(model.decoder, row[17:30], torch.arange(17, 30), [0, 13])
        torn = logits(model.decoder, row[17:30], torch.arange(13) * 2, [0, 13])
    assert_close(packed, alone, 1e-5)
    # Rope sees distances alone: a shift is rounding, other distances are not.
    assert_close(late, alone, 1e-4)
    assert float((torn - alone).norm() / alone.norm()) > 1e-2


@pytest.mark.parametrize("every_option", [False, True], ids=["llama", "every option"])
def test_the_loss_of_a_row_is_the_weighted_nll_of_its_labelled_tokens(
    tmp_path: Path, method: Method, patched: dict[str, Any], every_option: bool
) -> None:
    """By the definition, from the logits: the state at t - 1 predicts the label at t; -100 counts nothing."""
    model = tiny(tmp_path, torch.float64, **(patched if every_option else EVERYTHING))
    chosen = [1, 2, 16, 18, 29, 31, 40]  # a document's second and last tokens among them
    row = row_of(tokens(2), chosen)
    with torch.no_grad():
        scores = log_softmax(finite(logits(model.decoder, row.tokens, POSITIONS, STARTS)))
    expected = np.array([-scores[t - 1, int(row.tokens[t])] for t in chosen])
    loss, nll = computed(model.decoder, row, method, factor=0.3)
    assert_close(measured(model.decoder, row, method), expected, 1e-12)
    assert_close(nll, expected, 1e-12)
    assert loss == pytest.approx((expected * row.weights[chosen].numpy()).sum(), rel=1e-12)  # the factor is no part


@DTYPES
@pytest.mark.parametrize("packed", [False, True], ids=["resident", "packed"])
def test_training_moves_the_pairs_and_nothing_else(
    tmp_path: Path, method: Method, dtype: torch.dtype, packed: bool
) -> None:
    """Every other tensor of the model, and the file, has the same bytes after three steps with weight decay."""
    model = tiny(tmp_path, dtype, packed, **EVERYTHING)
    before, file_before, pairs_before = hashes(model.base), model.gguf.path.read_bytes(), pair_hashes(model.pairs)
    assert len(before) >= len(model.gguf.tensors)
    config = TrainingConfig(warmup_steps=0, max_steps=3, weight_decay=0.1)
    job = Job(with_pairs(model.base, model.pairs, SCALE), examples(), [], config, method.work)
    for _ in train(job, new_state(model.pairs, 50, method.recompute), None, lambda: None):
        pass
    assert hashes(model.base) == before
    assert model.gguf.path.read_bytes() == file_before
    after = pair_hashes(model.pairs)
    assert all(after[name] != pairs_before[name] for name in after)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_weight_is_held_twice(tmp_path: Path, dtype: torch.dtype) -> None:
    """q, k, v share one memory, gate and up another; each of the other tensors has its own."""
    model = tiny(tmp_path, dtype, **EVERYTHING)
    memories = {tensor.untyped_storage().data_ptr() for _, tensor in tensors_in(model.base, "")}
    assert len(memories) == len(model.gguf.tensors) - 3 * len(model.base.layers)


def test_packed_weights_stay_in_the_file(tmp_path: Path) -> None:
    """Only the vectors (norms, biases, rope's factors) are copied."""
    model = tiny(tmp_path, torch.float32, packed=True, **EVERYTHING)
    in_file = [model.gguf.raw(name) for name in model.gguf.tensors]
    copied = [
        tensor
        for _, tensor in tensors_in(model.base, "")
        if not any(np.may_share_memory(tensor.numpy(), raw) for raw in in_file)
    ]
    assert copied, "the vectors, in float32"
    assert all(tensor.ndim == 1 for tensor in copied), [tensor.shape for tensor in copied]


def hashes(decoder: Decoder) -> dict[str, str]:
    """SHA-256 of every tensor of the decoder, by where it is."""
    return {name: digest(tensor) for name, tensor in tensors_in(decoder, "")}


def pair_hashes(pairs: dict[str, LoraPair]) -> dict[str, str]:
    return {name + half: digest(getattr(pair, half)) for name, pair in pairs.items() for half in ("lora_a", "lora_b")}


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def tensors_in(thing: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Walk a tree of dataclasses and tuples."""
    if isinstance(thing, Tensor):
        yield path, thing
    elif isinstance(thing, tuple):
        for index, part in enumerate(thing):
            yield from tensors_in(part, f"{path}.{index}")
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from tensors_in(getattr(thing, field.name), f"{path}.{field.name}")
