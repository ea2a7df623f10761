"""Gemma 3 270M against the real llama.cpp: windows, two rope bases and all norms at their real sizes and numbers.

The measures are docs/design.md's. Run with -rP to see every figure. The file has 262,144 tokens, so every row of logits
is two megabytes: texts are short here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gguflora import load_jsonl
from gguflora.data import Encoded, Example, encode_example
from gguflora.data.example import Conversation
from gguflora.gguf import Adapter, read_adapter, write_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.model import Decoder, PackedRow, Workspace, load_decoder, row_nll
from gguflora.run.opening import Base, open_base
from gguflora.run.verify import Agreement, compare
from tests.numerics import GELU_TABLE, TABLE_RMS_BOUND, Floats, alike, assert_same_graph, finite, logit_gap
from tests.parity import plants
from tests.parity.cases import Tokens, adapted, ours, tabled_gelu
from tests.parity.figures import Figures
from tests.rewritten import write_dequantised
from tests.tiny import random_adapter

ROOT = Path(__file__).parents[2]
SHORT = 32
WINDOW, LATE = 512, 60
SEED, RANK, SCALE = 0, 5, 2.5
F32, Q4_K_M = "Gemma 3 270M in F32", "Gemma 3 270M Q4_K_M"


@pytest.fixture(scope="module")
def base(gemma3_path: Path) -> Base:
    return open_base(gemma3_path)


@pytest.fixture(scope="module")
def decoder(base: Base) -> Decoder:
    """From the quantised file, computed in float32."""
    return load_decoder(base.gguf, base.spec, torch.float32)


@pytest.fixture(scope="module")
def llama(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """The same numbers as an F32 file, made by gguf-py: llama.cpp then rounds no activations to 8 bits."""
    path = tmp_path_factory.mktemp("gemma3") / "f32.gguf"
    write_dequantised(base.gguf, path)
    with LlamaModel(path, exact=True) as model:
        path.unlink()  # 1.1 GB; the mapped file stays readable
        yield model


@pytest.fixture(scope="module")
def text(base: Base) -> Tokens:
    """Prose from its first sentence on: at a line break after nothing the table of GELU counts ten times as much."""
    licence = (ROOT / "LICENSE").read_text()
    return np.array(base.tokenizer.encode(licence[licence.index('"License" shall mean') :]), np.int64)


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third as strong as on the tiny models, since there are six times as many pairs.

    At three times this strength and scale 2 the logits move by more than half their deviation, and llama.cpp's table of
    GELU is amplified too: KL 5e-6.
    """
    path = tmp_path_factory.mktemp("adapter") / "random.gguf"
    whole = random_adapter(base.gguf, RANK, SEED, SCALE)
    write_adapter(path, Adapter(whole.architecture, whole.alpha / 3, whole.pairs))
    return path


def with_adapter(llama: LlamaModel, path: Path, scale: float, tokens: Tokens) -> Floats:
    handle = llama.load_lora_adapter(path)
    llama.set_lora_adapter(handle, scale)
    result = finite(llama.logits(tokens))
    llama.free_lora_adapter(handle)
    return result


# --- the graph ---


def test_the_file_is_what_this_is_about(base: Base) -> None:
    """18 layers, three of them without the window of 512; embeddings are the output layer; no key of the pattern."""
    assert [i for i, layer in enumerate(base.spec.layers) if layer.mixer.window is None] == [5, 11, 17]
    assert {layer.mixer.window for layer in base.spec.layers} == {WINDOW, None}
    assert base.spec.tied
    assert "gemma3.attention.sliding_window_pattern" not in base.gguf.metadata


def test_the_graph_is_llama_cpps(
    decoder: Decoder, llama: LlamaModel, text: Tokens, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """And what is left is as large as what llama.cpp's table of GELU makes of our own graph, and no larger.

    With the table our own float32 and float64 lie as far apart (KL 4e-7) as llama.cpp and we do (7e-7), and without it
    KL 4e-12: 18 layers of a staircase. So equality is shown on the tiny models, and size here.
    """
    mine = ours(decoder, text[:SHORT])
    gap = assert_same_graph(llama.logits(text[:SHORT]), mine, bounds=GELU_TABLE)
    monkeypatch.setattr("gguflora.model.ffn.gated", tabled_gelu)
    by_the_table = logit_gap(ours(decoder, text[:SHORT]), mine)
    print(gap, f"by the table: {by_the_table}", sep="\n")
    assert gap.rms < 1.5 * by_the_table.rms  # two staircases that differ by luck
    figures.gap(F32, "logits", gap, GELU_TABLE)


def test_what_training_calls_the_loss_is_llama_cpps_nll_beyond_the_window(
    base: Base, decoder: Decoder, llama: LlamaModel, text: Tokens, figures: Figures
) -> None:
    """Token by token at positions where most layers no longer see the beginning; a decoder without windows fails."""
    tokens = text[: WINDOW + LATE]
    labels = np.where(np.arange(len(tokens)) < WINDOW, -100, tokens)
    theirs = llama.nll(tokens, labels)
    row = PackedRow(
        tokens=torch.from_numpy(tokens),
        positions=torch.arange(len(tokens)),
        document_starts=[0, len(tokens)],
        labels=torch.from_numpy(labels),
        weights=torch.ones(len(tokens)),
    )
    mine = finite(row_nll(decoder, row, Workspace(len(tokens))))
    without = finite(row_nll(without_windows(base, decoder), row, Workspace(len(tokens))))
    deviation = 6.0  # of the logits, as in the test before this one
    rms, other = (float(np.sqrt(((nll - theirs) ** 2).mean())) / deviation for nll in (mine, without))
    print(f"{len(mine)} tokens, nll {mine.mean():.5f}; rms of the difference {rms:.1e}, without windows {other:.1e}")
    assert mine.shape == theirs.shape == (LATE,)
    assert rms <= 2 * TABLE_RMS_BOUND  # an nll has one logit and the sum of all in it
    assert other > 10 * rms
    figures.add(F32, "nll beyond the window", "rms difference / deviation", rms, 2 * TABLE_RMS_BOUND)


def without_windows(base: Base, decoder: Decoder) -> Decoder:
    """The same weights, each layer seeing everything before it."""
    wrong = plants.windows(lambda _index, _window: None)(base.spec)
    layers = (
        replace(layer, mixer=replace(layer.mixer, spec=spec.mixer))
        for layer, spec in zip(decoder.layers, wrong.layers, strict=True)
    )
    return replace(decoder, layers=tuple(layers))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_a_random_adapter_is_llama_cpps_at_every_scale(
    decoder: Decoder, llama: LlamaModel, text: Tokens, adapter: Path, scale: float, figures: Figures
) -> None:
    theirs = with_adapter(llama, adapter, scale, text[:SHORT])
    gap = assert_same_graph(theirs, ours(adapted(decoder, adapter, scale), text[:SHORT]), SEED, GELU_TABLE)
    print(gap)
    figures.gap(F32, "logits with a random adapter, scales 0 to 2", gap, GELU_TABLE)
    moved = logit_gap(llama.logits(text[:SHORT]), theirs)
    print("the adapter's own effect:", moved)
    assert (moved.largest == 0) if scale == 0 else (GELU_TABLE.times(moved) > 1000)


@pytest.mark.parametrize(
    ("stem", "layer"),
    [
        ("attn_q", 0),
        ("attn_k", 3),
        ("attn_v", 5),
        ("attn_output", 8),
        ("ffn_gate", 11),
        ("ffn_up", 14),
        ("ffn_down", 17),
    ],
)
def test_a_pair_alone_moves_llama_cpps_logits_as_it_moves_ours(
    decoder: Decoder,
    llama: LlamaModel,
    text: Tokens,
    adapter: Path,
    tmp_path: Path,
    stem: str,
    layer: int,
    figures: Figures,
) -> None:
    tokens = text[:SHORT]
    whole, name = read_adapter(adapter), f"blk.{layer}.{stem}.weight"
    # Thirty times as strong as a pair among 126: it stands alone here, and must show above the table of GELU.
    write_adapter(tmp_path / "one.gguf", Adapter("gemma3", 30 * whole.alpha, {name: whole.pairs[name]}))
    before = finite(llama.logits(tokens))
    theirs = with_adapter(llama, tmp_path / "one.gguf", 1.0, tokens) - before
    mine = ours(adapted(decoder, tmp_path / "one.gguf", 1.0), tokens) - ours(decoder, tokens)
    cosine, ratio = alike(mine, theirs)
    effect = theirs.std() / before.std()
    print(f"{name}: cosine 1 - {1 - cosine:.1e}, norm ratio 1 + {ratio - 1:.1e}, effect {effect:.3f}")
    assert effect > 20 * TABLE_RMS_BOUND, f"{name} hardly acts"
    assert cosine > 0.999
    assert abs(ratio - 1) < 0.01
    figures.effect(F32, cosine, ratio)


# --- the quantised file, whose activations llama.cpp rounds to 8 bits ---


def prose(base: Base) -> list[Encoded]:
    """The licence, and what people say in the notes, in pieces of some hundred tokens; every token counts.

    On prose, of the kind that the model itself would write, the mean of log p - log q is a KL, and the rule holds
    (tests/parity/test_smollm2.py says why it is prose).
    """
    blocks = (ROOT / "LICENSE").read_text().split("\n\n")
    pieces = ["\n\n".join(blocks[start : start + 3]) for start in range(0, len(blocks), 3)]
    notes = [example.content for example in load_jsonl(ROOT / "examples" / "notes" / "train.jsonl")]
    said = [note.messages[1].content for note in notes if isinstance(note, Conversation)][:160]
    pieces += ["\n".join(said[start : start + 6]) for start in range(0, len(said), 6)]
    return [
        document
        for piece in pieces
        for document in encode_example(Example.completion("", piece), base.tokenizer, base.template)
    ]


def told(agreement: Agreement) -> str:
    difference = agreement.ours - agreement.llamacpp
    three_errors = agreement.allowed - 2 * agreement.kl
    return (
        f"nll {agreement.ours:.5f} ours, {agreement.llamacpp:.5f} llama.cpp, difference {difference:+.5f}; "
        f"2 KL {2 * agreement.kl:.5f} + 3 standard errors {three_errors:.5f} = {agreement.allowed:.5f} allowed; "
        f"{agreement.tokens} tokens"
    )


@pytest.mark.parametrize(
    ("pieces", "tokens"), [(2, 200), pytest.param(None, 4000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_quantised_model_loses_as_much_as_in_llama_cpp(
    base: Base, decoder: Decoder, gemma3_path: Path, pieces: int | None, tokens: int, figures: Figures
) -> None:
    with LlamaModel(gemma3_path, exact=True) as quantised:
        agreement = compare(decoder, quantised, prose(base)[:pieces])
    print(told(agreement))
    assert agreement.tokens >= tokens
    assert 0 < agreement.kl < 0.02  # about 0.006: rounding to 8 bits, not another model
    assert agreement.agrees, told(agreement)
    figures.agreement(Q4_K_M, f"nll of {agreement.tokens} tokens of prose", agreement)


# --- tokens ---


def test_prose_has_the_tokens_of_llama_cpp(base: Base, llama: LlamaModel) -> None:
    """Hard and random text is in tests/tokenizer/test_spm.py."""
    texts = [path.read_text() for path in (ROOT / "LICENSE", ROOT / "README.md", ROOT / "docs" / "design.md")]
    texts.append((ROOT / "examples" / "notes" / "train.jsonl").read_text())
    for each in texts:
        assert base.tokenizer.encode(each) == llama.tokenize(each)
        assert len(each) > 2000
