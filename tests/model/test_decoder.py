"""Packed documents don't see each other, the loss is what its definition says, and training moves the pairs alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gguflora.config import TrainingConfig
from gguflora.data import pack
from gguflora.kernels import CPU, REFERENCE, Kernels
from gguflora.model import Decoder, LoraPair, hidden_states, logits, row_loss, with_pairs
from gguflora.model.decoder import Embedding
from gguflora.train import Job, new_state, train
from gguflora.train.step import micro_batch_loss
from tests.numerics import assert_close, finite, log_softmax
from tests.tiny_training import EVERYTHING, SCALE, examples, tiny

KERNELS = pytest.mark.parametrize("kernels", [REFERENCE, CPU], ids=lambda kernels: kernels.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
STARTS = [0, 17, 30, 41]
POSITIONS = torch.cat([torch.arange(end - start) for start, end in pairwise(STARTS)])


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 300, (STARTS[-1],), generator=torch.Generator().manual_seed(seed))


@KERNELS
@DTYPES
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_document_leaves_the_logits_as_they_are_to_the_bit(
    tmp_path: Path, kernels: Kernels, dtype: torch.dtype, changed: int
) -> None:
    """Other tokens in one document, as many of them: no bit of the others' logits moves."""
    model = tiny(tmp_path, dtype, kernels)
    start, end = STARTS[changed], STARTS[changed + 1]
    before, after = tokens(0), tokens(0)
    after[start:end] = tokens(1)[start:end]
    with torch.no_grad():
        one, other = (logits(model.decoder, row, POSITIONS, STARTS) for row in (before, after))
    assert torch.equal(one[:start], other[:start])
    assert torch.equal(one[end:], other[end:])
    assert not torch.equal(one[start:end], other[start:end])


@KERNELS
def test_another_document_teaches_nothing_about_this_one(tmp_path: Path, kernels: Kernels) -> None:
    """A loss in document 2 has no gradient with respect to document 1's embeddings, in packed layers."""
    model = tiny(tmp_path, torch.float32, kernels)
    row = tokens(0)
    rows = model.base.token_embd(row, torch.float32).requires_grad_()
    decoder = dataclasses.replace(model.decoder, token_embd=cast(Embedding, lambda _tokens, _dtype: rows))
    loss = hidden_states(decoder, row, POSITIONS, STARTS)[17:30].square().sum()
    [gradient] = torch.autograd.grad(loss, [rows])
    assert gradient[17:30].any(dim=1).all()
    assert not gradient[:17].any()
    assert not gradient[30:].any()


@KERNELS
def test_an_example_loses_as_much_packed_as_alone(tmp_path: Path, kernels: Kernels) -> None:
    model = tiny(tmp_path, torch.float32, kernels)
    encoded = examples()
    [row] = pack(encoded, 1000)
    with torch.no_grad():
        packed = micro_batch_loss(model.decoder, row)[1]
        alone = [micro_batch_loss(model.decoder, pack([example], 1000)[0])[1] for example in encoded]
    borders = np.cumsum([len(nll) for nll in alone])[:-1]
    for together, by_itself in zip(np.split(packed.numpy(), borders), alone, strict=True):
        assert_close(together, by_itself, 1e-5)  # float32: other sizes of matrix add up in another order


@KERNELS
def test_positions_count_within_a_document(tmp_path: Path, kernels: Kernels) -> None:
    """The second document's logits are those it has alone, so it starts at position 0 again."""
    model = tiny(tmp_path, torch.float32, kernels)
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


@KERNELS
def test_the_loss_of_a_row_is_the_weighted_nll_of_its_labelled_tokens(tmp_path: Path, kernels: Kernels) -> None:
    """By the definition, from the logits: the state at t - 1 predicts the label at t; -100 counts nothing."""
    model = tiny(tmp_path, torch.float64, kernels, **EVERYTHING)
    row = tokens(2)
    labels = torch.full_like(row, -100)
    weights = torch.linspace(0.25, 3, len(row), dtype=torch.float64)
    chosen = [1, 2, 16, 18, 29, 31, 40]  # a document's second and last tokens among them
    labels[chosen] = row[chosen]
    with torch.no_grad():
        scores = log_softmax(finite(logits(model.decoder, row, POSITIONS, STARTS)))
        loss, nll = row_loss(model.decoder, row, POSITIONS, STARTS, labels, weights)
    expected = np.array([-scores[t - 1, int(row[t])] for t in chosen])
    assert_close(nll, expected, 1e-12)
    assert_close(loss, (expected * weights[chosen].numpy()).sum(), 1e-12)


@DTYPES
def test_training_moves_the_pairs_and_nothing_else(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every other tensor of the model, and the file, has the same bytes after three steps with weight decay."""
    model = tiny(tmp_path, dtype, CPU, **EVERYTHING)
    before, file_before, pairs_before = hashes(model.base), model.gguf.path.read_bytes(), pair_hashes(model.pairs)
    assert len(before) == len(model.gguf.tensors)  # the decoder holds each of the file's tensors once
    config = TrainingConfig(warmup_steps=0, max_steps=3, weight_decay=0.1)
    job = Job(with_pairs(model.base, model.pairs, SCALE), examples(), [], config, micro_batch_tokens=50)
    for _ in train(job, new_state(model.pairs), None, lambda: None):
        pass
    assert hashes(model.base) == before
    assert model.gguf.path.read_bytes() == file_before
    after = pair_hashes(model.pairs)
    assert all(after[name] != pairs_before[name] for name in after)


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
