"""The compiled operations round no worse than torch's, hide no NaN, and give the same bits on any number of threads.

What each operation is, and that its gradient is right, is held by the other files here for torch's version.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gguflora.gguf.format import BLOCKS, GgmlType
from gguflora.kernels.dequantise.reference import FUNCTIONS
from gguflora.kernels.lora_linear.explicit import Block, StackedPairs
from gguflora.kernels.operations import TORCH, Operations, choose_operations, compiled
from gguflora.kernels.threads import libgomp, place
from tests.kernels.explicit_pair import blank
from tests.kernels.random_inputs import normal, seeded
from tests.numerics import assert_as_exact

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(libgomp() is None, reason="torch does not run on libgomp here: torch's version runs"),
]

Cast = Callable[[Tensor], Tensor]
Case = Callable[[Operations, torch.dtype, Cast], dict[str, Tensor]]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
EPSILON, SCALE = 1e-3, 0.45


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32, deviation: float = 1.0) -> Tensor:
    return normal(seeded(seed), *shape, dtype=dtype, deviation=deviation).detach()


def norm(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
    """Rows of mean squares on both sides of epsilon; the gradient is written to one buffer and added to another."""
    x, weight = cast(drawn(0, 37, 67) * torch.logspace(-3, 1, 37)[:, None]), cast(drawn(1, 67))
    dy = cast(drawn(2, 37, 67, dtype=dtype))
    y, again, r = blank(*x.shape, dtype=dy.dtype), blank(*x.shape, dtype=dy.dtype), blank(37, 1, dtype=x.dtype)
    operations.norm.forward(x, weight, EPSILON, y, r)
    operations.norm.apply(x, weight, r, again)
    dx, total = blank(*x.shape, dtype=dy.dtype), cast(drawn(3, 37, 67))
    operations.norm.backward(dy, x, weight, r, dx)
    operations.norm.backward(dy, x, weight, r, total, add=True)
    back = blank(*x.shape, dtype=dy.dtype)
    operations.norm.backward(cast(drawn(4, 37, 67)), x, weight, r, back)  # the residual's gradient comes in
    return {"y": y, "again": again, "r": r, "dx": dx, "dh": total, "back": back}


def activation_of(kind: str) -> Case:
    def gated(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
        """Halves of one buffer, as in the model, from where the exponential is nothing to where it is all."""
        gate, up = cast(drawn(0, 40, 2 * 88, dtype=dtype, deviation=3.0)).chunk(2, 1)
        dy, y = cast(drawn(1, 40, 88, dtype=dtype)), blank(40, 88, dtype=gate.dtype)
        operations.activation.forward(gate, up, kind, y)
        gradients = blank(40, 2 * 88, dtype=gate.dtype)
        d_gate, d_up = gradients.chunk(2, 1)
        again = blank(40, 88, dtype=gate.dtype)
        operations.activation.backward(dy, gate, up, kind, d_gate, d_up, again)
        return {"y": y, "again": again, "d_gate": d_gate, "d_up": d_up}

    return gated


def residual(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
    """A branch in the compute dtype on a residual that is wider."""
    h, branch = cast(drawn(0, 37, 67)), cast(drawn(1, 37, 67, dtype=dtype))
    out = blank(37, 67, dtype=h.dtype)
    operations.add(h, branch, out)
    return {"out": out}


def rope_of(half_split: bool) -> Case:
    def rope(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
        """Heads that lie among others, as queries do in the model."""
        x = cast(drawn(0, 21, 9, 10, dtype=dtype))[:, 2:7]
        angles = drawn(1, 21, 5)
        cos, sin = cast(angles.cos()), cast(angles.sin())
        out = {name: blank(21, 5, 10, dtype=x.dtype) for name in ("there", "back")}
        operations.rope.rotate(x, cos, sin, half_split, out["there"])
        operations.rope.rotate(x, cos, sin, half_split, out["back"], back=True)
        return out

    return rope


def softmax_of(positions: int, keys: int, window: int | None) -> Case:
    def softmax(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
        p = cast(drawn(0, 3, positions * 2, keys, dtype=dtype, deviation=4.0))
        dp = cast(drawn(1, 3, positions * 2, keys, dtype=dtype))
        operations.attention.softmax.forward(p, positions, SCALE, window)
        operations.attention.softmax.backward(p, dp, SCALE)
        return {"p": p, "ds": dp} if keys > 1 else {"p": p}  # one key: p is 1, and its slope 0

    return softmax


def cross_entropy(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
    logits = cast(drawn(0, 19, 501, dtype=dtype, deviation=4.0))
    labels, weights = torch.randint(501, (19,), generator=seeded(1)), cast(drawn(2, 19).abs())
    alone = operations.cross_entropy(logits, labels, None)
    nll = operations.cross_entropy(logits, labels, weights)
    return {"nll": nll, "alone": alone, "d_logits": logits}


def attention(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
    """Two documents of heads that tiles are for."""
    q, k, v, d_out = (cast(drawn(i, 75, heads, 32, dtype=dtype)) for i, heads in enumerate((4, 2, 2, 4)))
    out = blank(75, 4, 32, dtype=q.dtype)
    kept = operations.attention.forward(q, k, v, [0, 41, 75], SCALE, None, out)
    dq, dk, dv = operations.attention.backward(d_out, out, kept, (q, k, v), [0, 41, 75], SCALE, None)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def lora_linear(operations: Operations, dtype: torch.dtype, cast: Cast) -> dict[str, Tensor]:
    """A layer of sizes that tiles are for, with its pair."""
    x, dy, weight, a, b = (
        cast(drawn(i, *shape, dtype=dtype)) for i, shape in enumerate(((45, 64), (45, 96), (96, 64), (6, 64), (96, 6)))
    )
    pairs = StackedPairs(a, (Block(b, slice(0, 96), slice(0, 6)),), SCALE)
    y, c, dx = (blank(45, size, dtype=x.dtype) for size in (96, 6, 64))
    operations.lora_linear.forward(x, weight, None, pairs, y, c)
    delta = operations.lora_linear.backward(dy, c, weight, pairs, dx)
    assert delta is not None
    da = operations.lora_linear.a_gradient(delta, x)
    return {"y": y, "c": c, "dx": dx, "da": da.to(x.dtype), "db": delta.db[0].to(x.dtype)}


CASES = {
    "norm": norm,
    "residual": residual,
    "silu": activation_of("silu"),
    "gelu_tanh": activation_of("gelu_tanh"),
    "rope, consecutive": rope_of(False),
    "rope, half split": rope_of(True),
    "softmax": softmax_of(11, 11, None),
    "softmax after a past": softmax_of(5, 40, None),
    "softmax in a window": softmax_of(30, 40, 7),
    "softmax of one": softmax_of(1, 1, None),
    "cross-entropy": cross_entropy,
}
BY_TILES = {"attention": attention, "linear": lora_linear}
"""Where the processor has tiles: test_flash.py and test_tiled.py hold what they compute."""

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
@DTYPES
def test_it_errs_at_most_twice_as_much_as_torchs_version(case: Case, dtype: torch.dtype) -> None:
    fast, plain = (case(operations, dtype, torch.clone) for operations in (compiled(), TORCH))
    exact = case(TORCH, dtype, torch.Tensor.double)
    for name, truth in exact.items():
        print(f"{name} {dtype}: {assert_as_exact(fast[name], plain[name], truth, name):.2f} times torch's error")


@EACH
@DTYPES
def test_its_bits_do_not_depend_on_the_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    together = case(compiled(), dtype, torch.clone)
    torch.set_num_threads(1)
    for name, alone in case(compiled(), dtype, torch.clone).items():
        assert torch.equal(alone, together[name]), name


@EACH
@DTYPES
def test_a_number_that_is_none_stays_visible(case: Case, dtype: torch.dtype) -> None:
    """NaN in the last row of what goes in leaves some in everything that comes out, as with torch's version."""

    def broken(x: Tensor) -> Tensor:
        x = x.clone()
        x[-1] = float("nan")
        return x

    fast, plain = (case(operations, dtype, broken) for operations in (compiled(), TORCH))
    for name, value in plain.items():
        assert value.isnan().any(), name
        assert fast[name].isnan().any(), name


@DTYPES
def test_a_second_look_gives_the_same_bits(dtype: torch.dtype) -> None:
    """A norm from its known factor, and losses without their gradient."""
    rows, losses = norm(compiled(), dtype, torch.clone), cross_entropy(compiled(), dtype, torch.clone)
    assert torch.equal(rows["y"], rows["again"])
    assert torch.equal(losses["nll"], losses["alone"])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_an_activation_is_finite_where_its_exponential_is_not(activation: str) -> None:
    gate = torch.tensor([[-3e4, -700.0, -88.0, 0.0, 88.0, 700.0, 3e4]])
    up, dy = torch.full_like(gate, 2.0), torch.ones_like(gate)
    sides = []
    for operations in (compiled(), TORCH):
        y, d_gate, d_up = (torch.empty_like(gate) for _ in range(3))
        operations.activation.forward(gate, up, activation, y)
        operations.activation.backward(dy, gate, up, activation, d_gate, d_up, torch.empty_like(gate))
        sides.append((y, d_gate, d_up))
    for ours, theirs in zip(*sides, strict=True):
        assert torch.allclose(
            ours, theirs, rtol=1e-6, atol=1e-11
        )  # e^57 stands for what is larger, so 3e4 / 6e24 for 0


def test_rows_that_do_not_lie_together_are_refused() -> None:
    """A kernel reads a row as one piece of memory: a transposed matrix would be another one, without a word."""
    assert place(torch.zeros(3, 8)[:, :4])[1] == 32
    for lying_otherwise in (torch.zeros(4, 3).t(), torch.zeros(3, 4, 2).transpose(1, 2), torch.zeros(3, 8)[:, ::2]):
        with pytest.raises(AssertionError, match="don't lie together"):
            place(lying_otherwise)


def test_other_dtypes_and_a_wish_get_torchs_version() -> None:
    assert choose_operations(torch.float64, "auto")[0] is TORCH
    assert choose_operations(torch.bfloat16, "torch")[0] is TORCH
    assert choose_operations(torch.bfloat16, "auto")[0] is compiled()


@pytest.mark.parametrize("type", FUNCTIONS, ids=lambda type: type.name)
@DTYPES
def test_blocks_give_the_bits_of_torchs_version(type: GgmlType, dtype: torch.dtype) -> None:
    """Random bytes, in rows that lie among others; which NaN it is means nothing."""
    nbytes, elements = (3 * size for size in (BLOCKS[type].nbytes, BLOCKS[type].elements))
    raw = torch.randint(256, (61, nbytes + 4), generator=seeded(0), dtype=torch.uint8)[:, :nbytes]
    sides = []
    for operations in (compiled(), TORCH):
        out = blank(61, 2 * elements, dtype=dtype)[:, :elements]
        operations.dequantise(raw, type, out)
        sides.append(out)
    assert torch.isfinite(sides[0]).float().mean() > 0.9
    assert torch.equal(sides[0].isnan(), sides[1].isnan())
    assert torch.equal(sides[0].nan_to_num(), sides[1].nan_to_num())


RESULTS = """
import hashlib, torch
from gguflora.kernels.first_use import compiling_here
from gguflora.kernels.operations import load_compiled
from tests.kernels.test_compiled import BY_TILES, CASES

with compiling_here():
    operations = load_compiled()
for name, case in (CASES | BY_TILES).items():
    for dtype in (torch.float32, torch.bfloat16):
        values = case(operations, dtype, torch.clone).values()
        print(name, dtype, hashlib.sha256(b"".join(value.float().numpy().tobytes() for value in values)).hexdigest())
"""


def test_a_process_that_compiles_gives_the_bits_of_one_that_finds_it_compiled(tmp_path: Path) -> None:
    """Where nothing can be kept each process compiles, else all load what one has compiled: the same bits."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", RESULTS],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for _ in range(2)
    )
    assert first.count("\n") == 2 * len(CASES | BY_TILES)
    assert first == second
    assert list(tmp_path.rglob("*.nbi")), "numba wrote no cache there: nothing was compared"
