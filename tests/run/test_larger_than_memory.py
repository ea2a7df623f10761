"""A model that is larger than the memory there is trains from its file: packed weights are read through the map."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguflora.gguf import GgmlType, Tensor, ValueType, f32, write_gguf
from gguflora.kernels.threads import libgomp
from tests.runs import UNCHECKED, write_dataset
from tests.tiny import tokenizer_metadata

ROOT = Path(__file__).parents[2]
WIDTH, FFN, HEADS, LAYERS = 512, 8192, 8, 60
VOCABULARY = 300  # the tiny tokenizer's
BLOCK = np.dtype([("d", "<f2"), ("q", "i1", 32)])  # Q8_0: ggml-common.h, block_q8_0
LIMIT = 680_000_000
"""Bytes of private memory, of which Python, torch and numba reserve 270 MB once all is compiled."""


def write_large(path: Path) -> Path:
    """A Q8_0 model of 850 MB in which all layers are alike, so that it is written in a second."""
    rng = np.random.default_rng(0)
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH // 2, WIDTH),
        "attn_v": (WIDTH // 2, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    blocks = {stem: q8_0(rng, shape) for stem, shape in shapes.items()}
    embedding = q8_0(rng, (VOCABULARY, WIDTH))
    tensors = [
        Tensor("token_embd.weight", GgmlType.Q8_0, (VOCABULARY, WIDTH), embedding),
        f32("output_norm.weight", np.ones(WIDTH)),
    ]
    for index in range(LAYERS):
        tensors += [
            Tensor(f"blk.{index}.{stem}.weight", GgmlType.Q8_0, shapes[stem], data) for stem, data in blocks.items()
        ]
        tensors += [f32(f"blk.{index}.{norm}.weight", np.ones(WIDTH)) for norm in ("attn_norm", "ffn_norm")]
    uint, real = ValueType.UINT32, ValueType.FLOAT32
    numbers = {
        "block_count": (uint, LAYERS),
        "context_length": (uint, 2048),
        "embedding_length": (uint, WIDTH),
        "feed_forward_length": (uint, FFN),
        "attention.head_count": (uint, HEADS),
        "attention.head_count_kv": (uint, HEADS // 2),
        "attention.layer_norm_rms_epsilon": (real, 1e-5),
        "rope.freq_base": (real, 10_000.0),
        "rope.dimension_count": (uint, WIDTH // HEADS),
    }
    names = {"general.architecture": (ValueType.STRING, "llama"), "general.name": (ValueType.STRING, "large")}
    metadata: dict[str, Any] = names | {f"llama.{key}": value for key, value in numbers.items()} | tokenizer_metadata()
    write_gguf(path, metadata, tensors)
    return path


def q8_0(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Random blocks whose values deviate by about 1 / sqrt(columns)."""
    blocks = np.empty(shape[0] * shape[1] // 32, BLOCK)
    blocks["d"] = shape[1] ** -0.5 / 74  # the quants deviate by 74
    blocks["q"] = rng.integers(-127, 128, (len(blocks), 32), np.int8)
    return blocks


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("large") / "large.gguf")


def trained(
    model: Path, folder: Path, *options: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    data = write_dataset(folder / "data.jsonl", 8)
    return subprocess.run(
        [*UNCHECKED, "train", str(model), str(data), "--output-dir", str(folder / "out"), "--json", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": str(folder)} | (environment or {}),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_two_steps_in_less_memory_than_the_file_has(large: Path, tmp_path: Path) -> None:
    """What limits the process counts its private memory alone, reserved or touched, and no page of the file.

    That holds at a machine's first use too: what compiles is another process.
    """
    assert large.stat().st_size > 1.2 * LIMIT
    options = ("--rank", "2", "--max-steps", "2", "--batch-size", "2", "--threads", "1")
    done = trained(large, tmp_path, *options, environment={"NUMBA_CACHE_DIR": str(tmp_path / "numba")})
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    [planned] = [event for event in events if event["event"] == "planned"]
    if libgomp():
        assert [event["once"] for event in events if event["event"] == "compiling"] == [True]
        assert "by numba" in planned["choices"]["kernels"]
    steps = [event for event in events if event["event"] == "step_done"]
    assert len(steps) == 2
    assert all(np.isfinite(step["loss"]) and step["gradient_norm"] > 0 for step in steps)
    [plan] = [event for event in events if event["event"] == "memory_planned"]
    assert plan["mapped"] > LIMIT
    assert not [event for event in events if event["event"] == "halved"]


def test_unpacked_weights_would_not_fit(large: Path, tmp_path: Path) -> None:
    """The control: the limit is one that unpacked weights run into."""
    done = trained(large, tmp_path, "--weights", "resident", "--max-steps", "1")
    assert done.returncode == 4, done.stderr
    assert "memory ran out while the weights" in done.stderr
    assert not (tmp_path / "out").exists()
