"""SmolLM2-135M against the real llama.cpp: the graph exactly, the quantised file statistically, the gain of training.

The measures are docs/design.md's. Run with -rP to see every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gguflora.data import Encoded, Example, encode_example, pack
from gguflora.data.example import Conversation
from gguflora.gguf import Adapter, read_adapter, write_adapter
from gguflora.llamacpp import LlamaModel
from gguflora.llamacpp.server import LlamaServer
from gguflora.model import Decoder, from_adapter, hidden_states, load_decoder, with_pairs
from gguflora.run.opening import Base
from gguflora.run.verify import Agreement, compare
from gguflora.train.evaluate import token_nll
from gguflora.train.step import packed_row
from tests.numerics import LARGEST_BOUND, Floats, alike, assert_same_graph, finite, logit_gap
from tests.parity.figures import Figures
from tests.tiny import random_adapter
from tests.tiny_training import computed, full_adapter, method_named, random_pairs, take_gradients

SHORT, LONG = 100, 600  # tokens; llama.cpp computes 512 at once, so LONG takes it two
SEED = 0
SCALE = 2.5
F32, Q4_1 = "SmolLM2-135M in F32", "SmolLM2-135M Q4_1"
Tokens = npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def text(encoded_notes: dict[str, tuple[Encoded, ...]]) -> Tokens:
    """Notes one after the other, as one document of LONG tokens."""
    return np.concatenate([example.tokens for example in encoded_notes["train"]])[:LONG]


@pytest.fixture(scope="module")
def random_file(smollm2: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "random.gguf"
    write_adapter(path, random_adapter(smollm2.gguf, rank=5, seed=SEED, scale=SCALE))
    return path


def ours(decoder: Decoder, tokens: Tokens, last: int | None = None) -> Floats:
    """Logits of a document, or of its last positions alone."""
    rows = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        hidden = hidden_states(decoder, rows, torch.arange(len(rows)), [0, len(rows)])
        return finite(decoder.output(hidden[-(last or len(rows)) :]))


def adapted(decoder: Decoder, path: Path, scale: float = 1.0) -> Decoder:
    adapter = read_adapter(path)
    [rank] = {pair.rank for pair in adapter.pairs.values()}
    return with_pairs(decoder, from_adapter(adapter), scale * adapter.alpha / rank)


# --- the graph: our decoder of the quantised file equals llama.cpp on the same numbers in F32 ---


def test_the_graph_is_llama_cpps(
    decoder: Decoder, dequantised_llama: LlamaModel, text: Tokens, figures: Figures
) -> None:
    gap = assert_same_graph(dequantised_llama.logits(text[:SHORT]), ours(decoder, text[:SHORT]))
    print(gap)
    figures.gap(F32, "logits", gap)


def test_the_graph_is_llama_cpps_at_late_positions(
    decoder: Decoder, dequantised_llama: LlamaModel, text: Tokens, figures: Figures
) -> None:
    """Beyond 512 tokens, where llama.cpp reads its cache."""
    late = LONG - 512
    gap = assert_same_graph(dequantised_llama.logits(text)[-late:], ours(decoder, text, last=late))
    print(gap)
    figures.gap(F32, "logits of positions 512 to 600", gap)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_a_random_adapter_is_llama_cpps_at_every_scale(
    decoder: Decoder, dequantised_llama: LlamaModel, text: Tokens, random_file: Path, scale: float, figures: Figures
) -> None:
    handle = dequantised_llama.load_lora_adapter(random_file)
    dequantised_llama.set_lora_adapter(handle, scale)
    theirs = dequantised_llama.logits(text[:SHORT])
    dequantised_llama.free_lora_adapter(handle)
    gap = assert_same_graph(theirs, ours(adapted(decoder, random_file, scale), text[:SHORT]), SEED)
    print(gap)
    figures.gap(F32, "logits with a random adapter, scales 0 to 2", gap)
    moved = logit_gap(dequantised_llama.logits(text[:SHORT]), theirs)
    print("the adapter's own effect:", moved)
    assert (moved.largest == 0) if scale == 0 else (moved.largest > 1000 * LARGEST_BOUND)


def test_a_trained_adapter_is_llama_cpps(
    decoder: Decoder, dequantised_llama: LlamaModel, text: Tokens, trained_adapter: Path, figures: Figures
) -> None:
    """The file that training wrote, trained on quantised weights, acts the same on the F32 base."""
    handle = dequantised_llama.load_lora_adapter(trained_adapter)
    dequantised_llama.set_lora_adapter(handle)
    theirs = dequantised_llama.logits(text[:SHORT])
    dequantised_llama.free_lora_adapter(handle)
    gap = assert_same_graph(theirs, ours(adapted(decoder, trained_adapter), text[:SHORT]))
    print(gap)
    figures.gap(F32, "logits with a trained adapter", gap)


@pytest.mark.parametrize(
    ("stem", "layer"),
    [
        ("attn_q", 0),
        ("attn_k", 5),
        ("attn_v", 10),
        ("attn_output", 15),
        ("ffn_gate", 20),
        ("ffn_up", 25),
        ("ffn_down", 29),
    ],
)
def test_a_pair_alone_moves_llama_cpps_logits_as_it_moves_ours(
    decoder: Decoder,
    dequantised_llama: LlamaModel,
    text: Tokens,
    random_file: Path,
    tmp_path: Path,
    stem: str,
    layer: int,
    figures: Figures,
) -> None:
    tokens = text[: SHORT // 2]
    whole, name = read_adapter(random_file), f"blk.{layer}.{stem}.weight"
    # Ten times as strong as a pair among 210: it stands alone here, and must show above float32 rounding.
    write_adapter(tmp_path / "one.gguf", Adapter("llama", 10 * whole.alpha, {name: whole.pairs[name]}))
    base = finite(dequantised_llama.logits(tokens))
    handle = dequantised_llama.load_lora_adapter(tmp_path / "one.gguf")
    dequantised_llama.set_lora_adapter(handle)
    theirs = finite(dequantised_llama.logits(tokens)) - base
    dequantised_llama.free_lora_adapter(handle)
    mine = ours(adapted(decoder, tmp_path / "one.gguf"), tokens) - ours(decoder, tokens)
    cosine, ratio = alike(mine, theirs)
    effect = np.abs(theirs).max() / base.std()
    print(f"{name}: cosine 1 - {1 - cosine:.1e}, norm ratio 1 + {ratio - 1:.1e}, effect {effect:.3f} of the deviation")
    assert effect > 100 * LARGEST_BOUND, f"{name} hardly acts"
    assert cosine > 0.999
    assert abs(ratio - 1) < 0.01
    figures.effect(F32, cosine, ratio)


@pytest.mark.parametrize("name", ["reference", "explicit"])
def test_what_training_calls_the_loss_is_llama_cpps_nll(
    decoder: Decoder,
    dequantised_llama: LlamaModel,
    encoded_notes: dict[str, tuple[Encoded, ...]],
    trained_adapter: Path,
    name: str,
    figures: Figures,
) -> None:
    """Token by token: packed rows, labels and all, against llama.cpp reading each note alone."""
    chosen = encoded_notes["test_seen"][:4]
    [row] = pack(chosen, 1000)
    handle = dequantised_llama.load_lora_adapter(trained_adapter)
    dequantised_llama.set_lora_adapter(handle)
    theirs = np.concatenate([dequantised_llama.nll(example.tokens, example.labels) for example in chosen])
    dequantised_llama.free_lora_adapter(handle)
    mine = finite(token_nll(adapted(decoder, trained_adapter), row, method_named(name)))
    print(f"{len(mine)} tokens, nll {mine.mean():.6f}, largest difference {np.abs(mine - theirs).max():.1e}")
    # What the logits may differ by, 1e-4 of their deviation of 6, moves an nll by twice that at most.
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= 2 * LARGEST_BOUND * 6
    largest, bound = np.abs(mine - theirs).max(), 2 * LARGEST_BOUND * 6
    figures.add(F32, "nll of each trained token, packed", "largest difference, nats", largest, bound)


def test_packed_weights_train_to_the_bit_as_resident_ones(
    smollm2: Base, decoder: Decoder, encoded_notes: dict[str, tuple[Encoded, ...]]
) -> None:
    """The real file's blocks of Q4_1: loss and every gradient of one note, with a pair on each matrix."""
    row = packed_row(pack(encoded_notes["test_seen"][:1], 1000)[0])
    pairs = random_pairs(full_adapter(smollm2.gguf), torch.float32)
    sides = []
    for base in (decoder, load_decoder(smollm2.gguf, smollm2.spec, torch.float32, packed=True)):
        loss, nll = computed(with_pairs(base, pairs, SCALE), row, method_named("explicit"))
        sides.append({"loss": torch.tensor(loss), "nll": nll} | take_gradients(pairs))
    resident, packed = sides
    assert len(resident) == 2 + 2 * 210
    assert all(torch.equal(value, packed[name]) for name, value in resident.items())


# --- the quantised file, whose activations llama.cpp rounds to 8 bits ---
#
# |difference of nll| <= 2 KL + 3 standard errors is a rule for text of the kind that the model itself writes: there the
# mean of log p - log q is a KL. On other text it is of first order in the rounding, and KL of second. On the answers of
# the notes, unlike anything that the base knows, llama.cpp loses 0.9 % more with 8-bit activations than with its own
# F32 graph (which is ours, see above): 1.5 times what the rule allows there. So the base is held to it on prose, and
# the tuned model on the answers.


def prose(base: Base, notes: Sequence[Example]) -> list[Encoded]:
    """The licence, and what people say in the notes, in pieces of some hundred tokens; every token counts."""
    blocks = (Path(__file__).parents[2] / "LICENSE").read_text().split("\n\n")
    pieces = ["\n\n".join(blocks[start : start + 10]) for start in range(0, len(blocks), 10)]
    said = [messages_of(note)[1]["content"] for note in notes]
    pieces += ["\n".join(said[start : start + 20]) for start in range(0, len(said), 20)]
    return [
        document
        for piece in pieces
        for document in encode_example(Example.completion("", piece), base.tokenizer, base.template)
    ]


def told(name: str, agreement: Agreement) -> str:
    difference = agreement.ours - agreement.llamacpp
    three_errors = agreement.allowed - 2 * agreement.kl
    return (
        f"{name}: nll {agreement.ours:.5f} ours, {agreement.llamacpp:.5f} llama.cpp, difference {difference:+.5f}; "
        f"2 KL {2 * agreement.kl:.5f} + 3 standard errors {three_errors:.5f} = {agreement.allowed:.5f} allowed; "
        f"{agreement.tokens} tokens"
    )


def test_the_quantised_model_loses_as_much_as_in_llama_cpp(
    smollm2: Base, decoder: Decoder, quantised_llama: LlamaModel, notes: dict[str, list[Example]], figures: Figures
) -> None:
    agreement = compare(decoder, quantised_llama, prose(smollm2, notes["train"][:120]))
    print(told("base", agreement))
    assert agreement.tokens >= 4000
    assert 0 < agreement.kl < 0.02  # about 0.004: rounding to 8 bits, not another model
    assert agreement.agrees, told("base", agreement)
    figures.agreement(Q4_1, f"nll of {agreement.tokens} tokens of prose", agreement)


def test_training_gains_in_llama_cpp_what_it_gains_here(
    decoder: Decoder,
    quantised_llama: LlamaModel,
    encoded_notes: dict[str, tuple[Encoded, ...]],
    trained_adapter: Path,
    figures: Figures,
) -> None:
    """On notes that were not trained, within 5 %; the gain is 10 times what two programs may differ by."""
    held_out = encoded_notes["test_seen"][:14]
    base = compare(decoder, quantised_llama, held_out)
    handle = quantised_llama.load_lora_adapter(trained_adapter)
    quantised_llama.set_lora_adapter(handle)
    tuned = compare(adapted(decoder, trained_adapter), quantised_llama, held_out)
    quantised_llama.free_lora_adapter(handle)
    print(told("base", base), told("tuned", tuned), sep="\n")
    mine, theirs = base.ours - tuned.ours, base.llamacpp - tuned.llamacpp
    print(f"gain {mine:.5f} ours, {theirs:.5f} llama.cpp: {mine / theirs - 1:+.2%}")
    assert tuned.agrees, told("tuned", tuned)
    assert theirs >= 10 * max(base.allowed, tuned.allowed)
    assert abs(mine - theirs) <= 0.05 * theirs
    figures.agreement(Q4_1, f"nll of {tuned.tokens} trained tokens, tuned", tuned)
    figures.add(Q4_1, f"gain of training, {theirs:.2f} nats", "relative difference", abs(mine / theirs - 1), 0.05)


# --- tokens ---


def test_every_note_has_the_tokens_of_llama_server(
    smollm2_path: Path,
    notes: dict[str, list[Example]],
    encoded_notes: dict[str, tuple[Encoded, ...]],
    figures: Figures,
) -> None:
    """Prompts as /apply-template and /tokenize give them; answers and their end as text behind them."""
    count = 0
    with LlamaServer(smollm2_path, context_length=256) as server:
        for name, examples in notes.items():
            for example, encoded in zip(examples, encoded_notes[name], strict=True):
                messages = messages_of(example)
                prompt = server.tokenize(server.apply_template(messages[:-1]))
                answer = server.tokenize(messages[-1]["content"] + "<|im_end|>", add_special=False)
                after = server.tokenize("\n", add_special=False)
                assert encoded.tokens.tolist() == prompt + answer + after, f"{name}: {example.source}"
                expected = [-100] * len(prompt) + answer + [-100] * len(after)
                assert encoded.labels.tolist() == expected, f"{name}: {example.source}"
                count += 1
    assert count > 400
    figures.add(Q4_1, "tokens and labels of a note", "notes that are equal", count, 400, at_least=True)


def messages_of(example: Example) -> list[dict[str, str]]:
    assert isinstance(example.content, Conversation)
    return [{"role": message.role, "content": message.content} for message in example.content.messages]
