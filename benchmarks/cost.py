"""What a token costs: over the tokens of a step, the length of documents, the rank, and the size of the model.

    python -m benchmarks.cost       about 6 minutes on two quiet cores; draws docs/plots/*.svg

Made-up tokens, half of them trained; gguflora as `train` runs it. Each point is the median of three steps behind one to
warm up with, and its share of the limit is taken with a limit timed just before its curve.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot

from benchmarks.flops import layer_shapes, step_flops
from benchmarks.gemm import rates
from benchmarks.workload import CONFIG, RANK, SCALE, Workload, fresh_pairs, gemma3, smollm2
from gguflora.data import Encoded
from gguflora.events import StepDone
from gguflora.kernels import choose_dtype
from gguflora.kernels.operations import choose_operations
from gguflora.model import Decoder, Workspace, load_decoder, with_pairs
from gguflora.run.fitting import ROWS
from gguflora.run.opening import Base, open_base
from gguflora.run.setting import bound_product_caches, set_threads
from gguflora.train import Job, new_state, train
from tests.tiny import tiny_llama

PLOTS = Path(__file__).parents[1] / "docs" / "plots"
STEPS = 4


@dataclass(frozen=True)
class Loaded:
    """A base, ready to train."""

    base: Base
    decoder: Decoder


@dataclass(frozen=True)
class Point:
    """One setting: milliseconds a token, and the share of the limit."""

    x: float
    cost: float
    share: float


@dataclass(frozen=True)
class Curve:
    """Points along one quantity."""

    name: str
    along: str
    points: list[Point]


def main() -> None:
    """Measure, print and draw."""
    set_threads(None)
    bound_product_caches()
    PLOTS.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        for curve in _curves(Path(folder)):
            print(f"\n{curve.along}")
            for point in curve.points:
                print(f"  {point.x:12,.0f} {point.cost:8.2f} ms a token {point.share:6.0%} of limit", flush=True)
            _draw(curve)


def _curves(folder: Path) -> Iterator[Curve]:
    model = _load(smollm2())
    limit = _limit(model)
    sizes = [(n, _point(n, model, _documents(model, n, 256), limit)) for n in (256, 512, 1024, 2048, 4096, 8192)]
    yield _curve("tokens", "tokens a step, in documents of 256", sizes)
    lengths = (64, 128, 256, 512, 1024, 2048, 4096)
    limit = _limit(model)
    yield _curve(
        "length",
        "tokens a document, 4,096 a step",
        [(n, _point(n, model, _documents(model, 4096, n), limit)) for n in lengths],
    )
    limit = _limit(model)
    documents = _documents(model, 2048, 256)
    ranks = [(rank, _point(rank, model, documents, limit, rank)) for rank in (4, 8, 16, 32, 64, 128)]
    yield _curve("rank", "rank, 2,048 tokens a step", ranks)
    yield _curve("size", "parameters in the layers, 2,048 tokens a step", [_of_size(path) for path in _models(folder)])


def _models(folder: Path) -> Iterator[Path]:
    """Random llamas of four layers and a small vocabulary, and the two real models."""
    for width in (256, 512, 1024, 2048):
        heads = {"heads": width // 64, "kv_heads": width // 256, "head_dim": 64}
        path = tiny_llama(folder / f"{width}.gguf", width=width, ffn=3 * width, layers=4, context_length=2048, **heads)
        yield path
        path.unlink()
    yield smollm2()
    yield gemma3(folder)


def _of_size(path: Path) -> tuple[float, Point]:
    model = _load(path)
    linears = [linear for layer in model.base.spec.layers for linear in layer.linears()]
    size = sum(linear.shape[0] * linear.shape[1] for linear in linears)
    return size, _point(size, model, _documents(model, 2048, 256), _limit(model))


def _load(path: Path) -> Loaded:
    base = open_base(path)
    return Loaded(base, load_decoder(base.gguf, base.spec, choose_dtype()[0], False))


def _limit(model: Loaded) -> float:
    """Operations a second at the model's shapes, in its dtype."""
    dtype = str(model.decoder.dtype).removeprefix("torch.")
    found = rates(layer_shapes(model.base.spec))
    return max(rate for name, rate in found.items() if name.startswith(dtype) and len(name.split()) == 2)


def _documents(model: Loaded, tokens: int, length: int) -> list[Encoded]:
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(max(tokens // length, 1)):
        ids = rng.integers(0, model.base.spec.vocabulary, min(length, tokens), dtype=np.int32)
        documents.append(Encoded(ids, np.where(np.arange(len(ids)) < len(ids) // 2, np.int32(-100), ids), 1.0, ""))
    return documents


def _point(x: float, model: Loaded, documents: list[Encoded], limit: float, rank: int = RANK) -> Point:
    seconds = median(_seconds(model, documents, rank))
    tokens = sum(len(document.tokens) for document in documents)
    return Point(x, seconds / tokens * 1e3, step_flops(model.base.spec, rank, documents) / seconds / limit)


def _seconds(model: Loaded, documents: list[Encoded], rank: int) -> list[float]:
    """Of each step but the first."""
    config = replace(CONFIG, batch_size=len(documents), epochs=STEPS)
    pairs = fresh_pairs(Workload(model.base, tuple(documents), config), rank)
    tokens = ROWS[0]
    work = Workspace(tokens, choose_operations(model.decoder.dtype, "auto")[0])
    job = Job(with_pairs(model.decoder, pairs, SCALE), documents, [], config, work)
    times = [time.perf_counter()]
    for event in train(job, new_state(pairs, tokens, False), None, lambda: None):
        if isinstance(event, StepDone):
            times.append(time.perf_counter())
    return [float(seconds) for seconds in np.diff(times)[1:]]


def _curve(name: str, along: str, points: Sequence[tuple[float, Point]]) -> Curve:
    return Curve(name, along, [point for _, point in sorted(points, key=lambda pair: pair[0])])


def _draw(curve: Curve) -> None:
    """docs/plots/NAME.svg: cost on the left, share of the limit on the right."""
    mpl.rcParams["svg.hashsalt"] = curve.name  # the same points give the same file
    figure, left = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    right = left.twinx()
    x = [point.x for point in curve.points]
    left.plot(x, [point.cost for point in curve.points], "o-", color="tab:blue")
    right.plot(x, [100 * point.share for point in curve.points], "s--", color="tab:orange")
    left.set_xscale("log", base=2 if x[-1] < 1e5 else 10)
    left.set_xlabel(curve.along)
    left.set_ylabel("ms a token", color="tab:blue")
    left.set_ylim(bottom=0)
    right.set_ylabel("% of the matmul limit", color="tab:orange")
    right.set_ylim(0, 100)
    figure.savefig(PLOTS / f"{curve.name}.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
