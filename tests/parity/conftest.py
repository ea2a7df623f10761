"""SmolLM2 as it is and dequantised, the notes it is trained on, and one adapter that a real training run wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gguflora import DataConfig, LoraConfig, LoraTrainer, TrainingConfig, load_jsonl
from gguflora.data import Encoded, Example, prepare
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, load_decoder
from gguflora.run.opening import Base, open_base
from tests.parity.figures import Figures
from tests.rewritten import write_dequantised

NOTES = Path(__file__).parents[2] / "examples" / "notes"
MAX_LENGTH = 512


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Where a test hands on what it measured."""
    return Figures(record_property)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Base:
    return open_base(smollm2_path)


@pytest.fixture(scope="session")
def decoder(smollm2: Base) -> Decoder:
    """SmolLM2 from its quantised file, computed in float32."""
    return load_decoder(smollm2.gguf, smollm2.spec, torch.float32)


@pytest.fixture(scope="session")
def quantised_llama(smollm2_path: Path) -> Iterator[LlamaModel]:
    with LlamaModel(smollm2_path, exact=True) as model:
        yield model


@pytest.fixture(scope="session")
def dequantised_llama(smollm2: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """SmolLM2 as an F32 file, its numbers made by gguf-py: llama.cpp then rounds no activations to 8 bits."""
    path = tmp_path_factory.mktemp("smollm2") / "f32.gguf"
    write_dequantised(smollm2.gguf, path)
    with LlamaModel(path, exact=True) as model:
        path.unlink()  # 540 MB; the mapped file stays readable
        yield model


@pytest.fixture(scope="session")
def notes() -> dict[str, list[Example]]:
    """The example's three files: train, test_seen, test_unseen."""
    return {path.stem: list(load_jsonl(path)) for path in sorted(NOTES.glob("*.jsonl"))}


@pytest.fixture(scope="session")
def encoded_notes(smollm2: Base, notes: dict[str, list[Example]]) -> dict[str, tuple[Encoded, ...]]:
    """The same, encoded as training sees them."""
    return {
        name: prepare(examples, smollm2.tokenizer, smollm2.template, MAX_LENGTH).encoded
        for name, examples in notes.items()
    }


@pytest.fixture(scope="session")
def trained_adapter(
    smollm2_path: Path, notes: dict[str, list[Example]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a user's own short training run writes: 12 steps of 4 notes, in the dtype of this processor."""
    trainer = LoraTrainer(
        smollm2_path,
        LoraConfig(rank=8, alpha=20.0),
        TrainingConfig(learning_rate=1e-3, warmup_steps=0, max_steps=12, batch_size=4),
        data_config=DataConfig(validation_split=0.0),
    )
    trainer.train(notes["train"])
    path = tmp_path_factory.mktemp("trained") / "adapter.gguf"
    trainer.save_adapter(path)
    return path
