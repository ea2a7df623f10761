"""A tiny F32 model and adapters for it, the adapters written by gguf-py: nothing of ours but the model's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguflora.llamacpp import LlamaModel
from tests.tiny import tiny_llama

RANK = 5
TARGETS = ("blk.0.attn_q.weight", "blk.2.ffn_down.weight")

AdapterWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def tiny(tiny_path: Path) -> Iterator[LlamaModel]:
    # One thread: llama.cpp's threads wait for each other without sleeping, which a busy machine turns into minutes.
    with LlamaModel(tiny_path, exact=True, threads=1) as model:
        yield model


@pytest.fixture
def write_adapter(tiny_path: Path, tmp_path: Path) -> AdapterWriter:
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in gguf.GGUFReader(tiny_path).tensors}

    def write(name: str = "adapter.gguf", alpha: float = 8.0, architecture: str = "llama", extra_rows: int = 0) -> Path:
        random = np.random.default_rng(0)
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for target in TARGETS:
            columns, rows = shapes[target]  # ggml counts the fastest dimension first
            lora_a = random.normal(0, columns**-0.5, (RANK, columns + extra_rows))
            writer.add_tensor(f"{target}.lora_a", lora_a.astype(np.float32))
            writer.add_tensor(f"{target}.lora_b", random.normal(0, 0.3, (rows, RANK)).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write
