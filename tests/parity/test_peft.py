"""Training is PEFT's: the same gradients and the same losses on the same weights, data and order.

PEFT trains transformers' own llama and Gemma 3 (benchmarks/peft_llama.py, peft_gemma3.py), document by document, in
the units of its own loss function, labels shifted by itself. So nothing that decides a gradient is shared: graph,
attention, loss, autograd.

In float32 alone: transformers computes norms, rope and the loss in float32 whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gguflora.arch import ModelSpec, model_spec
from gguflora.config import TrainingConfig
from gguflora.data import Encoded, load_jsonl, pack, prepare, step_indices
from gguflora.events import StepDone
from gguflora.gguf import GgufFile, open_gguf
from gguflora.model import LoraPair, Workspace, load_decoder, with_pairs
from gguflora.model.decoder import Decoder
from gguflora.run.opening import open_base
from gguflora.train import Job, Method, named_parameters, new_state, train
from gguflora.train.step import accumulate
from tests.numerics import assert_close, relative_difference
from tests.parity.figures import Figures
from tests.tiny import random_adapter, tiny_llama, tiny_model
from tests.tiny_training import EVERYTHING, RANK, SCALE, examples, full_adapter, random_pairs

pytest.importorskip("peft", reason="PEFT is not installed (constraints.txt has it)")
from benchmarks.peft_gemma3 import gemma3
from benchmarks.peft_llama import copy_pairs, gguf_rows, llama, peft_parameters, with_peft

GRADIENT_BOUND = 1e-4
"""Of a tensor's norm: two correct float32 graphs differ by 1e-6 to 1e-5, a wrong one by 1e-2 and more."""

LOSS_BOUND = 1e-3
"""In nats, after ten updates; a step's update moves the loss by 100 times as much."""

NOTES = Path(__file__).parents[2] / "examples" / "notes" / "train.jsonl"
STEPS, BATCH, RATE = 10, 3, 1e-2
# Windows shorter than the documents, a rope of their own, and every sixth layer without.
GEMMA3 = {
    "qk_norm": True,
    "post_norms": True,
    "window": 11,
    "window_pattern": 6,
    "window_rope_base": 100.0,
    "layers": 7,
}
TINY, SMOLLM2 = "llama and gemma3, tiny F32", "SmolLM2-135M Q4_1, computed in float32"
MICRO_BATCH_TOKENS = 50  # so that a step has several rows, one of them with several documents

METHODS = pytest.mark.parametrize(
    "method",
    [Method(None), Method(Workspace(MICRO_BATCH_TOKENS)), Method(Workspace(MICRO_BATCH_TOKENS), recompute=True)],
    ids=["reference", "explicit", "explicit, recomputed"],
)


@dataclass(frozen=True)
class Case:
    """One base without pairs here and, from the same file, in transformers; and what is trained.

    Attributes:
        start: the pairs that training begins with, B not zero.
        theirs: PEFT's model, with copies of `start`.
    """

    spec: ModelSpec
    base: Decoder
    start: dict[str, LoraPair]
    theirs: Any
    encoded: Sequence[Encoded]


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny matrices: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[{}, EVERYTHING], ids=["plain", "everything"])
def llama_case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return case_of(open_gguf(tiny_llama(tmp_path / "tiny.gguf", **request.param)), llama)


@pytest.fixture(params=["llama", "llama, everything", "gemma3"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "gemma3":
        return case_of(open_gguf(tiny_model(tmp_path / "tiny.gguf", architecture="gemma3", **GEMMA3)), gemma3)
    numbers = EVERYTHING if "everything" in request.param else {}
    return case_of(open_gguf(tiny_llama(tmp_path / "tiny.gguf", **numbers)), llama)


def case_of(gguf: GgufFile, build: Callable[[GgufFile, ModelSpec, torch.dtype], Any]) -> Case:
    """A tiny file's case; `build` makes transformers' model of it."""
    spec = model_spec(gguf)
    start = random_pairs(full_adapter(gguf), torch.float32)
    theirs = with_peft(build(gguf, spec, torch.float32), spec, start, SCALE)
    return Case(spec, load_decoder(gguf, spec, torch.float32), start, theirs, examples())


@pytest.fixture(scope="module")
def smollm2_case(smollm2_path: Path) -> Case:
    opened = open_base(smollm2_path)
    start = random_pairs(random_adapter(opened.gguf, RANK, scale=SCALE), torch.float32)
    model = llama(opened.gguf, opened.spec, torch.float32)
    model.loss_function = exact_loss
    theirs = with_peft(model, opened.spec, start, SCALE)
    notes = prepare(load_jsonl(NOTES)[:6], opened.tokenizer, opened.template, 512).encoded
    return Case(opened.spec, load_decoder(opened.gguf, opened.spec, torch.float32), start, theirs, notes)


@METHODS
def test_each_gradient_is_pefts(case: Case, method: Method, figures: Figures) -> None:
    """Each lora_a and lora_b, in one step of several packed rows, each example with its own weight."""
    hold_gradients_to_pefts(case, method, figures, TINY)


@METHODS
def test_the_losses_of_ten_steps_are_pefts(case: Case, method: Method, figures: Figures) -> None:
    hold_losses_to_pefts(case, method, RATE, figures, TINY)


@pytest.mark.slow
@METHODS
def test_each_gradient_of_smollm2_is_pefts(smollm2_case: Case, method: Method, figures: Figures) -> None:
    hold_gradients_to_pefts(smollm2_case, method, figures, SMOLLM2)


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method(Workspace(MICRO_BATCH_TOKENS))], ids=["explicit"])
def test_the_losses_of_ten_steps_of_smollm2_are_pefts(smollm2_case: Case, method: Method, figures: Figures) -> None:
    hold_losses_to_pefts(smollm2_case, method, 1e-3, figures, SMOLLM2)


@pytest.mark.parametrize("fault", ["labels not shifted", "weights ignored", "rows of attn_q not turned"])
def test_a_wrong_gradient_exceeds_the_bound_100_times(llama_case: Case, fault: str) -> None:
    """Each is a mistake that one of the two sides could make."""
    case = llama_case
    found = our_gradients(case, Method(None))
    name = next(name for name in found if "attn_q" in name and name.endswith("lora_b"))
    copy_pairs(case.theirs, case.spec, case.start)
    wrong = case.encoded
    if fault == "labels not shifted":
        wrong = [Encoded(e.tokens[1:], e.labels[:-1], e.weight, e.source) for e in wrong]
    if fault == "weights ignored":
        wrong = [Encoded(e.tokens, e.labels, 1.0, e.source) for e in wrong]
    peft_backward(case, wrong)
    theirs = dict(peft_parameters(case.theirs, case.start))[name].grad
    assert theirs is not None
    expected = theirs if fault == "rows of attn_q not turned" else gguf_rows(theirs, name, case.spec)
    assert relative_difference(found[name], expected) > 100 * GRADIENT_BOUND


def hold_gradients_to_pefts(case: Case, method: Method, figures: Figures, model: str) -> None:
    copy_pairs(case.theirs, case.spec, case.start)
    theirs_loss = peft_backward(case, case.encoded)
    ours = our_gradients(case, method, theirs_loss)
    worst = 0.0
    for name, parameter in peft_parameters(case.theirs, case.start):
        assert parameter.grad is not None, name
        expected = gguf_rows(parameter.grad, name, case.spec) if name.endswith("lora_b") else parameter.grad
        assert_close(ours[name], expected, GRADIENT_BOUND, name)
        worst = max(worst, relative_difference(ours[name], expected))
    assert len(ours) == 2 * len(case.start)
    print(f"largest difference {worst:.1e} of a gradient's norm, in {len(ours)} tensors")
    figures.add(model, "each gradient, PEFT's", "norm of the difference / norm", worst, GRADIENT_BOUND)


def our_gradients(case: Case, method: Method, loss: float | None = None) -> dict[str, Tensor]:
    """What a step of all examples leaves on copies of the pairs; its loss is held to `loss`."""
    pairs = copied(case.start)
    rows = pack(case.encoded, MICRO_BATCH_TOKENS)
    assert len(rows) > 1
    done = accumulate(with_pairs(case.base, pairs, SCALE), rows, method)
    assert loss is None or abs(done.mean - loss) < LOSS_BOUND
    found = {}
    for name, parameter in named_parameters(pairs):
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


def hold_losses_to_pefts(case: Case, method: Method, rate: float, figures: Figures, model: str) -> None:
    copy_pairs(case.theirs, case.spec, case.start)
    theirs = peft_losses(case, rate)
    ours = our_losses(case, method, rate)
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    print(f"losses {theirs[0]:.4f} to {theirs[-1]:.4f}, largest difference {max(gaps):.1e}")
    assert max(gaps) <= LOSS_BOUND, list(zip(ours, theirs, strict=True))
    figures.add(model, f"losses of {STEPS} steps, PEFT's", "largest difference, nats", max(gaps), LOSS_BOUND)
    assert min(theirs) < theirs[0] - 100 * LOSS_BOUND, f"nothing was learned: {theirs}"


def exact_loss(logits: Tensor, labels: Tensor, num_items_in_batch: float, **_: object) -> Tensor:
    """transformers' loss through logsumexp: sum(nll) / num_items_in_batch for logits (1, T, V), labels (1, T).

    Over a vocabulary of 49,152 torch's float32 cross_entropy is what puts SmolLM2's gradients 6e-5 from float64 (one
    note, worst tensor); through logsumexp PEFT's lie 9e-6 from it, ours 1.2e-5.
    """
    rows, following = logits[0, :-1], labels[0, 1:]
    trained = following >= 0
    picked = rows[trained].gather(-1, following[trained][:, None])[:, 0]
    return (rows[trained].logsumexp(-1) - picked).sum() / num_items_in_batch


def our_losses(case: Case, method: Method, rate: float) -> list[float]:
    """The loop's own losses, clipping and decay at their defaults."""
    pairs = copied(case.start)
    config = TrainingConfig(
        learning_rate=rate, schedule="constant", warmup_steps=0, batch_size=BATCH, max_steps=STEPS, epochs=STEPS
    )
    job = Job(with_pairs(case.base, pairs, SCALE), case.encoded, [], config, method.work)
    state = new_state(pairs, MICRO_BATCH_TOKENS, method.recompute)
    return [event.loss for event in train(job, state, None, lambda: None) if isinstance(event, StepDone)]


def peft_losses(case: Case, rate: float) -> list[float]:
    """PEFT's parameters under torch's own AdamW and clipping, the same examples in each step."""
    parameters = [parameter for parameter in case.theirs.parameters() if parameter.requires_grad]
    assert len(parameters) == 2 * len(case.start)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=TrainingConfig().weight_decay)
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        indices = step_indices(TrainingConfig().seed, step, len(case.encoded), BATCH)
        losses.append(peft_backward(case, [case.encoded[index] for index in indices]))
        torch.nn.utils.clip_grad_norm_(parameters, TrainingConfig().max_grad_norm)
        optimiser.step()
    return losses


def peft_backward(case: Case, encoded: Sequence[Encoded]) -> float:
    """Add the gradients of a step's loss to PEFT's parameters, and give it: sum(weight * nll) / sum(weight).

    transformers' own loss is sum(nll) / num_items_in_batch of a document's labels, which it shifts itself.
    """
    total = sum(example.weight * int((example.labels >= 0).sum()) for example in encoded)
    loss = 0.0
    for example in encoded:
        tokens, labels = (torch.from_numpy(part).long()[None] for part in (example.tokens, example.labels))
        part = example.weight * case.theirs(input_ids=tokens, labels=labels, num_items_in_batch=total).loss
        part.backward()
        loss += float(part.detach())
    return loss


def copied(pairs: dict[str, LoraPair]) -> dict[str, LoraPair]:
    return {
        name: LoraPair(*(half.detach().clone().requires_grad_() for half in (pair.lora_a, pair.lora_b)))
        for name, pair in pairs.items()
    }
