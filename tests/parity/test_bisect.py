"""A difference from llama.cpp is traced to where it begins: the layer and the tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gguflora.arch import ModelSpec, model_spec
from gguflora.gguf import GgufFile, read_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import from_adapter, with_pairs
from tests.parity import plants
from tests.parity.bisect import (
    ROUNDING,
    Intermediates,
    differences,
    first_difference,
    main,
    our_intermediates,
    their_intermediates,
)
from tests.parity.cases import TOKENS, Case, adapted, loaded, make_case
from tests.parity.figures import Figures
from tests.parity.plants import Plant
from tests.parity.test_architectures import EVERYTHING
from tests.tiny import OWN

pytestmark = pytest.mark.usefixtures("one_thread")

GELU = 1e-3
"""Where llama.cpp reads GELU from a table of 16-bit numbers, 4e-4 of each activation: correct code gives 4.4e-4."""
BOUNDS = {"gemma3": GELU}

UNNAMED = {"llama": set(), "qwen2": {"attn_out"}, "qwen3": {"attn_out"}, "gemma3": {"attn_out"}}
"""What llama.cpp's graph of the architecture has no name for (src/models)."""


@dataclass(frozen=True)
class Traced:
    """A tiny model and an adapter on it, with llama.cpp's intermediates without it and with it."""

    case: Case
    base: Intermediates
    tuned: Intermediates

    @property
    def gguf(self) -> GgufFile:
        return self.case.gguf


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traced]:
    return {name: trace(name, tmp_path_factory.mktemp(name)) for name in OWN}


def trace(architecture: str, folder: Path) -> Traced:
    case = make_case(folder, architecture, **EVERYTHING[architecture])
    wanted = our_intermediates(loaded(case.gguf), TOKENS)
    with LlamaModel(case.gguf.path, exact=True, threads=1) as llama:
        base = their_intermediates(llama, TOKENS, wanted)
        llama.set_lora_adapter(llama.load_lora_adapter(case.adapter))
        return Traced(case, base, their_intermediates(llama, TOKENS, wanted))


@pytest.mark.parametrize("architecture", OWN)
def test_a_right_model_differs_nowhere(traced: dict[str, Traced], architecture: str, figures: Figures) -> None:
    """With an adapter too, and every name of ours is one of llama.cpp's."""
    model, bound = traced[architecture], BOUNDS.get(architecture, ROUNDING)
    decoder = loaded(model.gguf)
    for theirs, ours in (
        (model.base, our_intermediates(decoder, TOKENS)),
        (model.tuned, our_intermediates(adapted(decoder, model.case.adapter, 1.0), TOKENS)),
    ):
        assert {name.split("-")[0] for name in ours.keys() - theirs.keys()} == UNNAMED[architecture]
        largest = max(found.size for found in differences(theirs, ours))
        print(f"{architecture}: {largest:.1e} at most of {len(ours)}")
        assert first_difference(theirs, ours, bound) is None
        figures.add(f"{architecture}, tiny F32", "every intermediate", "norm of the difference / norm", largest, bound)


def in_layer(index: int, plant: Plant) -> Plant:
    """The plant in one layer alone."""

    def only(spec: ModelSpec) -> ModelSpec:
        wrong = plant(spec).layers[index]
        return replace(spec, layers=(*spec.layers[:index], wrong, *spec.layers[index + 1 :]))

    return only


ROPE_2 = plants.rope(base=lambda base: 1.02 * base)
PLANTED: list[tuple[str, str, Plant, str]] = [
    ("llama", "embeddings 2 % off", plants.model(embedding_scale=1.02), "embd"),
    ("llama", "epsilon 5 % off", plants.model(epsilon=lambda epsilon: 1.05 * epsilon), "attn_norm-0"),
    ("llama", "a bias left out", in_layer(1, plants.without_bias("mixer", "attn_k")), "Kcur-1"),
    ("llama", "rope base 2 % off", in_layer(1, ROPE_2), "Qcur-1 after rope"),
    ("llama", "attention scale 2 % off", in_layer(2, plants.mixer(scale=lambda scale: 1.02 * scale)), "kqv_out-2"),
    ("llama", "output's bias left out", in_layer(0, plants.without_bias("mixer", "attn_output")), "attn_out-0"),
    ("llama", "norms swapped", in_layer(1, plants.norms(ffn_norm="attn_norm")), "ffn_norm-1"),
    ("llama", "gate's bias left out", in_layer(2, plants.without_bias("ffn", "ffn_gate")), "ffn_gate-2"),
    ("llama", "down's bias left out", in_layer(2, plants.without_bias("ffn", "ffn_down")), "ffn_out-2"),
    ("llama", "another norm", plants.model(output_norm="blk.2.ffn_norm.weight"), "result_norm"),
    ("llama", "head tied", plants.tied, "result_output"),
    ("qwen2", "keys and values swapped", in_layer(2, plants.swapped("mixer", "attn_k", "attn_v")), "Kcur-2"),
    ("qwen2", "the other activation", in_layer(1, plants.activation(lambda _: "gelu_tanh")), "ffn_act-1"),
    ("qwen3", "norm of keys wrong", in_layer(1, plants.head_norms(attn_k_norm="attn_q_norm")), "Kcur_normed-1"),
    ("gemma3", "a window one wider", in_layer(2, plants.windows(lambda _, window: window and window + 1)), "kqv_out-2"),
    ("gemma3", "post norm", in_layer(1, plants.norms(post_attention_norm="post_ffw_norm")), "attn_post_norm-1"),
    ("gemma3", "post norm", in_layer(0, plants.norms(post_ffw_norm="ffn_norm")), "ffn_post_norm-0"),
    ("gemma3", "cap left out", plants.model(softcap=None), "result_output"),
]


@pytest.mark.parametrize(
    ("architecture", "plant", "where"),
    [(architecture, plant, where) for architecture, _, plant, where in PLANTED],
    ids=[f"{architecture}, {what}, {where}" for architecture, what, _, where in PLANTED],
)
def test_a_planted_error_is_named(traced: dict[str, Traced], architecture: str, plant: Plant, where: str) -> None:
    model = traced[architecture]
    wrong = plant(model_spec(model.gguf))
    assert wrong != model_spec(model.gguf)
    ours = our_intermediates(loaded(model.gguf, wrong), TOKENS)
    found = first_difference(model.base, ours, BOUNDS.get(architecture, ROUNDING))
    print(found)
    assert found is not None
    assert found.name == where


def test_a_pair_that_is_not_applied_is_named(traced: dict[str, Traced]) -> None:
    model = traced["llama"]
    adapter = read_adapter(model.case.adapter)
    pairs = {name: pair for name, pair in from_adapter(adapter).items() if name != "blk.1.attn_v.weight"}
    ours = our_intermediates(with_pairs(loaded(model.gguf), pairs, 2.5), TOKENS)
    found = first_difference(model.tuned, ours)
    assert found is not None
    assert found.name == "Vcur-1"


def test_the_command_prints_every_intermediate(traced: dict[str, Traced], capsys: pytest.CaptureFixture[str]) -> None:
    main(str(traced["llama"].gguf.path), str(traced["llama"].case.adapter))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1 + len(traced["llama"].base)
    assert printed.endswith("first beyond rounding: None\n")
