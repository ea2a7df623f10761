"""What llama.cpp does with a pair on each of some tensors, told line by line: it may end the process at any of them.

    python -m tests.parity.adapter_probe MODEL FOLDER TENSOR...

The adapters are written with gguf-py, since gguflora would refuse to write most of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

from gguflora.errors import FileError
from gguflora.gguf import GgufFile, open_gguf
from gguflora.llamacpp import LlamaModel

RANK = 5
TOKENS = np.random.default_rng(0).integers(0, 300, 24)


def write_pair(model: GgufFile, tensor: str, path: Path) -> None:
    """An adapter of one pair, in the shapes that llama.cpp wants: the embedding's transposed, a norm's of one row."""
    rng = np.random.default_rng(0)
    info = model.tensors.get(tensor)
    shape = info.shape if info else (300, model.tensors["token_embd.weight"].shape[1])
    columns, out = shape[-1], shape[0] if len(shape) == 2 else 1
    halves = {"lora_a": (RANK, columns), "lora_b": (out, RANK)}
    if tensor == "token_embd.weight":
        halves = {"lora_a": (out, RANK), "lora_b": (columns, RANK)}
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    for half, size in halves.items():
        writer.add_tensor(f"{tensor}.{half}", rng.normal(0, 0.3, size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def effect_of(path: Path, adapter: Path) -> str:
    """In a model of its own each time: some adapters leave it unusable."""
    with LlamaModel(path, exact=True, threads=1) as llama:
        before = llama.logits(TOKENS)
        try:
            handle = llama.load_lora_adapter(adapter)
        except FileError:
            return "rejected"
        llama.set_lora_adapter(handle)
        return "ignored" if np.array_equal(llama.logits(TOKENS), before) else "acts"


def main(model: str, folder: str, tensors: list[str]) -> None:
    file = open_gguf(Path(model))
    for tensor in tensors:
        adapter = Path(folder) / "adapter.gguf"
        write_pair(file, tensor, adapter)
        print(tensor, effect_of(Path(model), adapter), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
