"""Faults that other trainers shipped, planted one at a time in a copy of the package: the test that must turn red does.

    make mutants, or: python -m tests.mutants [trap ...]

Each is an exact replacement in one file. A mutant that survives means that a test promises what it does not hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` becomes `new` in `file`, and `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "keys get no gradient",
        "model/explicit_attention.py",
        "    _turn_back(dk, raw_k, r_k, mixer.attn_k_norm, row, spec, work.operations, d_raw_k)",
        "    d_raw_k.zero_()",
        "tests/model/test_gradients.py",
    ),
    Mutant(
        "values get no gradient",
        "model/explicit_attention.py",
        "    d_v.copy_(dv)",
        "    d_v.zero_()",
        "tests/model/test_gradients.py",
    ),
    Mutant(
        "a backward writes where it still reads",
        "model/explicit.py",
        '    dy = work.take("dy", tuple(dh.shape), dtype)',
        '    dy = work.take("dx", tuple(dh.shape), dtype)',
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "clipping below the norm",
        "train/optimiser.py",
        "    if norm > max_norm:",
        "    if norm > 0:",
        "tests/train/test_optimiser.py",
    ),
    Mutant(
        "the scale of a pair is dropped",
        "model/groups.py",
        "    return StackedPairs(a, b, group.linears[0].scale)",
        "    return StackedPairs(a, b, 1.0)",
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "gradients are never cleared",
        "train/optimiser.py",
        "        parameter.grad = None",
        "        continue",
        "tests/train/test_step.py tests/train/test_optimiser.py tests/train/test_loop.py",
    ),
    Mutant(
        "lora_a begins too large",
        "model/lora.py",
        "        bound = 1 / math.sqrt(columns)",
        "        bound = 1 / math.sqrt(rank)",
        "tests/model/test_lora.py",
    ),
    Mutant(
        "measuring leaves gradients behind",
        "train/step.py",
        "            return row_nll(decoder, row, method.work)",
        "            return row_gradients(decoder, row, 1.0, method.work, False)[1]",
        "tests/train/test_evaluate.py tests/train/test_loop.py",
    ),
    Mutant(
        "a mean of means over micro-batches",
        "train/step.py",
        "packed_row(micro_batch, dropout), 1 / total, method)",
        "packed_row(micro_batch, dropout), 1 / trained_weight(micro_batch), method)",
        "tests/train/test_step.py",
    ),
    Mutant(
        "a sum in place of the mean of a step",
        "train/step.py",
        "packed_row(micro_batch, dropout), 1 / total, method)",
        "packed_row(micro_batch, dropout), 1.0, method)",
        "tests/train/test_step.py",
    ),
    Mutant(
        "the last, shorter step counts less",
        "train/loop.py",
        "    update(state, gradients, rate, job.config.weight_decay)",
        "    update(state, gradients, rate * len(batch.examples) / job.config.batch_size, job.config.weight_decay)",
        "tests/train/test_loop.py",
    ),
    Mutant(
        "norms are trained too",
        "kernels/norm/explicit.py",
        "    g = dy.to(x.dtype) * weight",
        "    g = dy.to(x.dtype) * weight.mul_(1.0001)",
        "tests/model/test_decoder.py",
    ),
    Mutant(
        "packed rows of a group in another order",
        "model/weight.py",
        "for weight in packed for part in weight.parts)",
        "for weight in reversed(packed) for part in weight.parts)",
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "windows of a document train their overlap twice",
        "data/chunks.py",
        "            labels[:overlap] = NOT_TRAINED",
        "            labels[:1] = NOT_TRAINED",
        "tests/data/test_chunks.py",
    ),
    Mutant(
        "one half of a block's scales is not looked at",
        "kernels/dequantise/finite.py",
        "    GgmlType.Q5_1: slice(0, 4),",
        "    GgmlType.Q5_1: slice(0, 2),",
        "tests/kernels/test_dequantise.py",
    ),
    Mutant(
        "a position that sees nothing",
        "kernels/attention/softmax.py",
        "dtype=torch.bool).triu(m - n + 1)",
        "dtype=torch.bool).triu(m - n)",
        "tests/kernels/test_attention.py",
    ),
)


def main(wanted: list[str]) -> int:
    """Plant all mutants (or those whose name holds one of `wanted`) and print what became of each."""
    survived = 0
    for mutant in MUTANTS:
        if not wanted or any(word in mutant.name for word in wanted):
            red = turns_red(mutant)
            survived += not red
            print(f"{'caught' if red else 'SURVIVED':9} {mutant.name:42} {mutant.tests}", flush=True)
    print(f"{survived} survived")
    return 1 if survived else 0


def turns_red(mutant: Mutant) -> bool:
    """Whether a test fails on a copy of the project with the mutant in it. The copy's tests pass without it."""
    with tempfile.TemporaryDirectory(prefix="gguflora-mutant-") as folder:
        copy = Path(folder)
        for name in ("gguflora", "tests", "pyproject.toml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy / name)
        path = copy / "gguflora" / mutant.file
        path.write_text(replaced(path.read_text(), mutant))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # pytest's own codes: 0 all passed, 1 a test failed, else it could not run
        raise RuntimeError(f"{mutant.name}: the tests could not run\n{done.stdout}\n{done.stderr}")
    return done.returncode == 1


def replaced(text: str, mutant: Mutant) -> str:
    """The text of a file with the mutant planted; its `old` must stand there exactly once."""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: found {text.count(mutant.old)} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
