"""The limit: how fast this machine multiplies matrices of the model's shapes, both ways that training needs.

Run as a child (turns.py): each question is answered by operations a second, by dtype and library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.flops import layer_shapes
from benchmarks.turns import Answer, serve
from gguflora.arch import model_spec
from gguflora.gguf import open_gguf
from gguflora.kernels import choose_dtype
from gguflora.run.setting import set_threads

ROWS = 1728  # about a step's tokens
REPEATS = 5
Product = Callable[[Tensor, Tensor], Tensor]


def rates(shapes: list[tuple[int, int]]) -> Answer:
    """Operations a second over all shapes (out, in): forward and input's gradient, each by dtype and library."""
    found: Answer = {}
    for name, (dtype, product) in products().items():
        for direction in ("forward", "backward"):
            found[f"{name} {direction}"] = _rate(shapes, dtype, product, direction == "backward")
        both = (found[f"{name} {direction}"] for direction in ("forward", "backward"))
        found[name] = 2 / sum(1 / rate for rate in both)  # as many operations in each
    return found


def products() -> dict[str, tuple[torch.dtype, Product]]:
    """What can be timed here. bfloat16 only where the processor has it: emulated, it takes minutes."""
    timed: dict[str, tuple[torch.dtype, Product]] = {"float32 mm": (torch.float32, torch.mm)}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        timed["float32 oneDNN"] = (torch.float32, _onednn)
    if choose_dtype()[0] is torch.bfloat16:
        timed["bfloat16 mm"] = (torch.bfloat16, torch.mm)
    return timed


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")
    return product


def _rate(shapes: list[tuple[int, int]], dtype: torch.dtype, product: Product, backward: bool) -> float:
    operations = sum(2 * ROWS * out * columns for out, columns in shapes)
    return operations / sum(_seconds(shape, dtype, product, backward) for shape in shapes)


def _seconds(shape: tuple[int, int], dtype: torch.dtype, product: Product, backward: bool) -> float:
    """Median time of one product: x (T, in) by W^T, or dy (T, out) by W."""
    weight = torch.randn(shape).to(dtype)
    right = weight if backward else weight.t()
    left = torch.randn(ROWS, right.shape[0]).to(dtype)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product(left, right)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def main() -> None:
    """Serve."""
    set_threads(None)
    shapes = layer_shapes(model_spec(open_gguf(Path(sys.argv[1]))))
    serve(lambda _: rates(shapes))


if __name__ == "__main__":
    main()
