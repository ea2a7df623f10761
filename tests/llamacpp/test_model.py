"""LlamaModel: what it promises about numbers, texts, adapters and memory, on a tiny F32 model and on SmolLM2."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguflora.errors import FileError, MachineError, UsageError
from gguflora.llamacpp import LlamaModel, context
from tests.llamacpp.conftest import AdapterWriter

TEXT = "The man in the house was often on the river, and then he went to the city again."
PROMPT = "<|im_start|>user\nTell me about the river.<|im_end|>\n<|im_start|>assistant\n"
SAYING_OK = "<|im_start|>user\nSay OK.<|im_end|>\n<|im_start|>assistant\nOK."

# Float32 sums in another order, on logits that deviate by more than 1: 24 bits, a few hundred terms, three layers.
SUM_ORDER = 1e-4


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LlamaModel]:
    with LlamaModel(smollm2_path, threads=1) as model:
        yield model


# --- numbers ---


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_logits_do_not_depend_on_where_batches_end(
    tiny: LlamaModel, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    tokens = tiny.tokenize(TEXT)
    whole = tiny.logits(tokens)
    monkeypatch.setattr(context, "BATCH_TOKENS", batch)
    with LlamaModel(tiny_path, exact=True, threads=1) as split:
        in_parts = split.logits(tokens)
    assert len(tokens) > 16 and whole.std() > 1
    np.testing.assert_allclose(in_parts, whole, rtol=0, atol=SUM_ORDER)


def test_logits_of_a_text_longer_than_the_context_so_far_and_its_batch(
    tiny: LlamaModel, write_adapter: AdapterWriter
) -> None:
    """The context grows, keeps the adapter, and a text's beginning has the same logits as on its own."""
    tiny.set_lora_adapter(tiny.load_lora_adapter(write_adapter()))
    long = (tiny.tokenize(TEXT) * 40)[: context.BATCH_TOKENS + 90]
    before = tiny.logits(long[:30])
    all_rows = tiny.logits(long)
    assert all_rows.shape == (602, tiny.vocabulary_size) and np.isfinite(all_rows).all()
    np.testing.assert_allclose(all_rows[:30], before, rtol=0, atol=SUM_ORDER)


def test_a_text_leaves_nothing_behind_for_the_next(tiny: LlamaModel) -> None:
    tokens = tiny.tokenize(TEXT)
    first = tiny.logits(tokens)
    tiny.logits(tokens[5:])
    assert np.array_equal(tiny.logits(tokens), first)


def test_later_tokens_do_not_change_earlier_logits(tiny: LlamaModel) -> None:
    tokens = tiny.tokenize(TEXT)
    changed = [*tokens[:-3], 40, 41, 42]
    one, other = tiny.logits(tokens), tiny.logits(changed)
    assert np.array_equal(one[:-3], other[:-3])
    assert not np.allclose(one[-3:], other[-3:], atol=0.1)


def test_no_tokens_have_no_logits(tiny: LlamaModel) -> None:
    assert tiny.logits([]).shape == (0, tiny.vocabulary_size)


def test_nll_is_the_log_softmax_of_the_row_before_each_trained_token(tiny: LlamaModel) -> None:
    tokens = np.array(tiny.tokenize(TEXT))
    labels = np.where(np.arange(len(tokens)) % 3 == 1, tokens, -100)
    logits = tiny.logits(tokens).astype(np.longdouble)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [-log_softmax[t - 1, tokens[t]] for t in range(len(tokens)) if labels[t] != -100]
    losses = tiny.nll(tokens, labels)
    assert losses.dtype == np.float64 and len(losses) > 5
    # Logits are float32 on both sides and computed alike; what differs is float64 rounding of a sum over V.
    np.testing.assert_allclose(losses, np.array(expected, np.float64), rtol=1e-12)


def test_nll_reads_across_batches(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    """Also where a whole batch has no trained token, and one is trained at a batch's first position."""
    tokens = tiny.tokenize(TEXT)
    labels = [-100] * len(tokens)
    for position in (1, 4, 20, len(tokens) - 1):
        labels[position] = tokens[position]
    whole = tiny.nll(tokens, labels)
    monkeypatch.setattr(context, "BATCH_TOKENS", 4)
    with LlamaModel(tiny_path, exact=True, threads=1) as split:
        np.testing.assert_allclose(split.nll(tokens, labels), whole, rtol=0, atol=SUM_ORDER)
    assert len(whole) == 4


def test_nll_without_trained_tokens_is_empty(tiny: LlamaModel) -> None:
    assert tiny.nll([5, 6, 7], [-100, -100, -100]).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-100, 6], "2 labels for 3 tokens"),
        ([-100, 7, 7], "The label at position 1 is 7, but the token there is 6"),
        ([5, 6, 7], "The first token has a label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tiny: LlamaModel, labels: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.nll([5, 6, 7], labels)


def test_exact_mode_is_not_the_stock_mode(tiny: LlamaModel, tiny_path: Path) -> None:
    """A float16 cache moves logits by more than the order of sums, and by no more than float16 can."""
    tokens = tiny.tokenize(TEXT)
    with LlamaModel(tiny_path, threads=1) as stock:
        difference = np.abs(stock.logits(tokens) - tiny.logits(tokens)).max() / tiny.logits(tokens).std()
    # 11 bits of float16 are 5e-4 of each key and value; attention here is sharp and three layers deep.
    assert SUM_ORDER < difference < 0.1


# --- generation ---


def test_generation_takes_the_highest_logit_each_time(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize(PROMPT)
    tokens = list(prompt)
    for _ in range(20):
        tokens.append(int(tiny.logits(tokens)[-1].argmax()))
    new = tiny.generate(prompt, 20)
    ends = [n for n, token in enumerate(tokens[len(prompt) :]) if tiny.ends_generation(token)]
    assert new == tokens[len(prompt) :][: ends[0] if ends else 20]
    assert len(new) > 5
    assert tiny.generate(prompt, 20) == new
    assert tiny.generate(prompt, 0) == []


def test_generation_stops_before_a_token_that_ends_it(smollm2: LlamaModel) -> None:
    prompt = smollm2.tokenize(SAYING_OK)
    best = int(smollm2.logits(prompt)[-1].argmax())
    assert smollm2.detokenize([best]) == "<|im_end|>" and smollm2.ends_generation(best)
    assert smollm2.generate(prompt, 10) == []


def test_generation_stops_at_the_tokens_it_is_told(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize(PROMPT)
    free = tiny.generate(prompt, 12)
    stop = free[6]
    assert tiny.generate(prompt, 12, stop_ids=[stop]) == free[: free.index(stop)]


def test_a_temperature_draws_by_the_seed(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize(PROMPT)
    draws = [tiny.generate(prompt, 8, temperature=3.0, seed=seed) for seed in range(5)]
    assert len({tuple(tokens) for tokens in draws}) > 1
    assert [tiny.generate(prompt, 8, temperature=3.0, seed=seed) for seed in range(5)] == draws
    assert tiny.generate(prompt, 8, temperature=1e-6) == tiny.generate(prompt, 8)


def test_drawn_tokens_follow_the_softmax(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize("The")
    logits = tiny.logits(prompt)[-1].astype(np.float64) / 2
    odds = np.exp(logits) / np.exp(logits).sum()
    favourite = int(odds.argmax())
    count = sum(tiny.generate(prompt, 1, temperature=2.0, seed=seed) == [favourite] for seed in range(300))
    spread = np.sqrt(300 * odds[favourite] * (1 - odds[favourite]))
    assert abs(count - 300 * odds[favourite]) < 4 * spread  # beyond 4 deviations: once in 16,000


def test_a_stream_gives_the_same_tokens_as_they_come(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize(PROMPT)
    stream = tiny.stream(prompt, 6)
    assert [next(stream), *stream] == tiny.generate(prompt, 6)


def test_a_stream_ends_with_an_error_when_its_text_is_gone(tiny: LlamaModel) -> None:
    prompt = tiny.tokenize(PROMPT)
    stream = tiny.stream(prompt, 6)
    next(stream)
    tiny.logits(prompt)
    with pytest.raises(UsageError, match="used for something else during a stream"):
        next(stream)


def test_what_cannot_be_generated_is_refused(tiny: LlamaModel) -> None:
    with pytest.raises(UsageError, match="The prompt is empty"):
        tiny.generate([], 3)
    with pytest.raises(UsageError, match="max_tokens and temperature must be 0 or more, not -1"):
        tiny.generate([5], -1)
    with pytest.raises(UsageError, match="not 3 and nan"):
        tiny.generate([5], 3, temperature=float("nan"))


# --- text and tokens ---


@given(st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_text_comes_back_from_its_tokens(tiny: LlamaModel, text: str) -> None:
    """The tiny vocabulary has every byte; SmolLM2's own lacks a few (F1 among them), so it can't keep all text."""
    tokens = tiny.tokenize(text, add_special=False, parse_special=False)
    assert tiny.detokenize(tokens) == text
    assert tiny.tokenize(text.encode(), add_special=False, parse_special=False) == tokens


@given(st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_any_bytes_have_tokens(tiny: LlamaModel, data: bytes) -> None:
    """Bytes that are no UTF-8 are replaced in llama.cpp; they must not crash it, nor overrun the room for tokens."""
    try:
        tokens = tiny.tokenize(data)
    except UsageError:  # as below
        assert any(byte >= 0xF4 for byte in data)
        return
    assert all(0 <= token < tiny.vocabulary_size for token in tokens)


@pytest.mark.parametrize("data", [b"\xf5\x86\x8e\x84", b"a\xf4\x90\x80\x80", b"\xe8\xf7\xbf\xbf\xbf"])
def test_characters_beyond_unicode_are_refused_as_llama_cpp_would_end_the_process(
    tiny: LlamaModel, data: bytes
) -> None:
    with pytest.raises(UsageError, match=r"stand for a character beyond U\+10FFFF"):
        tiny.tokenize(data)


@pytest.mark.parametrize("data", [b"\xf4\x8f\xbf\xbf", b"\xf5\x86\x8e", b"\xf8\x90\x80\x80\x80", b"\xf4\x90\x80"])
def test_its_neighbours_have_tokens(tiny: LlamaModel, data: bytes) -> None:
    """The last character there is, a cut one, and a lead byte that starts none."""
    assert tiny.tokenize(data)


def test_special_tokens_are_read_and_written_when_asked(smollm2: LlamaModel) -> None:
    """Ids from the file's own vocabulary: 1 is <|im_start|>, 2 is <|im_end|>."""
    tokens = smollm2.tokenize("<|im_start|>hi<|im_end|>")
    assert [tokens[0], tokens[-1]] == [1, 2]
    assert smollm2.detokenize(tokens) == "<|im_start|>hi<|im_end|>"
    assert smollm2.detokenize(tokens, special=False) == "hi"
    assert 1 not in smollm2.tokenize("<|im_start|>hi", parse_special=False)
    assert smollm2.tokenize("") == []


def test_a_long_token_is_whole(smollm2: LlamaModel) -> None:
    """Token 46778 of SmolLM2's vocabulary is a line feed and 80 spaces: longer than the room first offered."""
    assert smollm2.token_bytes(46778) == b"\n" + b" " * 80


def test_a_character_cut_in_two_is_joined_again(smollm2: LlamaModel) -> None:
    tokens = smollm2.tokenize("🜚")
    assert len(tokens) > 1
    assert smollm2.detokenize(tokens) == "🜚"
    assert smollm2.detokenize(tokens[:1]) == "\ufffd"


@pytest.mark.parametrize("tokens", [[5, -1], [5, 300], [[5]], [0.5]])
def test_tokens_that_are_none_are_refused(tiny: LlamaModel, tokens: list[int]) -> None:
    """llama.cpp would abort or read past its tables on some of these."""
    with pytest.raises(UsageError, match=r"vocabulary of 300 tokens|one row of whole numbers"):
        tiny.logits(tokens)


@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_outside_the_vocabulary_has_no_text(tiny: LlamaModel, token: int) -> None:
    with pytest.raises(UsageError, match=f"Token {token} at position 0"):
        tiny.detokenize([token])
    with pytest.raises(UsageError, match=f"Token {token} at position 0"):
        tiny.ends_generation(token)


# --- adapters ---


def test_an_adapter_acts_from_set_to_remove(tiny: LlamaModel, write_adapter: AdapterWriter) -> None:
    tokens = tiny.tokenize(TEXT)
    base = tiny.logits(tokens)
    handle = tiny.load_lora_adapter(write_adapter())
    assert np.array_equal(tiny.logits(tokens), base), "loaded is not applied"
    tiny.set_lora_adapter(handle)
    tuned = tiny.logits(tokens)
    assert np.abs(tuned - base).max() > 0.1 * base.std()
    tiny.set_lora_adapter(handle, scale=0.0)
    assert np.array_equal(tiny.logits(tokens), base)
    tiny.set_lora_adapter(handle)
    assert np.array_equal(tiny.logits(tokens), tuned)
    tiny.remove_lora_adapter(handle)
    assert np.array_equal(tiny.logits(tokens), base)
    tiny.remove_lora_adapter(handle)  # no longer applied: nothing to do


def test_scale_multiplies_alpha(tiny: LlamaModel, write_adapter: AdapterWriter) -> None:
    """Powers of two, so that both ways round alike."""
    tokens = tiny.tokenize(TEXT)
    tiny.set_lora_adapter(tiny.load_lora_adapter(write_adapter("a.gguf", alpha=4.0)), scale=2.0)
    by_scale = tiny.logits(tokens)
    tiny.set_lora_adapter(tiny.load_lora_adapter(write_adapter("b.gguf", alpha=8.0)))
    assert np.array_equal(tiny.logits(tokens), by_scale)


def test_a_second_adapter_replaces_the_first(tiny: LlamaModel, write_adapter: AdapterWriter) -> None:
    tokens = tiny.tokenize(TEXT)
    first = tiny.load_lora_adapter(write_adapter("a.gguf"))
    second = tiny.load_lora_adapter(write_adapter("b.gguf", alpha=-3.0))
    tiny.set_lora_adapter(second)
    alone = tiny.logits(tokens)
    tiny.set_lora_adapter(first)
    tiny.set_lora_adapter(second)
    assert np.array_equal(tiny.logits(tokens), alone)
    tiny.remove_lora_adapter(first)
    assert np.array_equal(tiny.logits(tokens), alone), "removing one that is not applied changes nothing"


def test_setting_an_adapter_ends_a_stream(tiny: LlamaModel, write_adapter: AdapterWriter) -> None:
    """A text half read with one adapter must not go on with another."""
    stream = tiny.stream(tiny.tokenize(PROMPT), 6)
    next(stream)
    tiny.set_lora_adapter(tiny.load_lora_adapter(write_adapter()))
    with pytest.raises(UsageError, match="during a stream"):
        next(stream)


def test_a_freed_adapter_no_longer_acts_and_its_handle_is_refused(
    tiny: LlamaModel, write_adapter: AdapterWriter
) -> None:
    tokens = tiny.tokenize(TEXT)
    base = tiny.logits(tokens)
    handle = tiny.load_lora_adapter(write_adapter())
    tiny.set_lora_adapter(handle)
    tiny.free_lora_adapter(handle)
    assert np.array_equal(tiny.logits(tokens), base)
    for use in (tiny.set_lora_adapter, tiny.remove_lora_adapter, tiny.free_lora_adapter):
        with pytest.raises(UsageError, match=r"adapter\.gguf is not in this model: it was freed"):
            use(handle)


def test_a_handle_of_another_model_is_refused(tiny: LlamaModel, tiny_path: Path, write_adapter: AdapterWriter) -> None:
    path = write_adapter()
    tiny.load_lora_adapter(path)
    with LlamaModel(tiny_path, threads=1) as other, pytest.raises(UsageError, match="loaded by another model"):
        tiny.set_lora_adapter(other.load_lora_adapter(path))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(tiny: LlamaModel, write_adapter: AdapterWriter, scale: float) -> None:
    handle = tiny.load_lora_adapter(write_adapter())
    with pytest.raises(UsageError, match="must be a finite number"):
        tiny.set_lora_adapter(handle, scale)


def test_a_file_that_is_no_adapter_of_the_model_is_refused_with_the_reason(
    tiny: LlamaModel, tiny_path: Path, tmp_path: Path, write_adapter: AdapterWriter
) -> None:
    reasons = {
        tmp_path / "absent.gguf": "failed to open",
        tiny_path: r"expect general\.type to be 'adapter'",
        write_adapter("arch.gguf", architecture="qwen2"): "model arch and LoRA arch mismatch",
        write_adapter("shape.gguf", extra_rows=1): "has incorrect shape",
    }
    for path, reason in reasons.items():
        with pytest.raises(FileError, match=reason):
            tiny.load_lora_adapter(path)


# --- memory ---


def test_a_closed_model_refuses_everything_and_closing_again_does_nothing(
    tiny_path: Path, write_adapter: AdapterWriter
) -> None:
    model = LlamaModel(tiny_path, threads=1)
    handle = model.load_lora_adapter(write_adapter())
    model.set_lora_adapter(handle)
    stream = model.stream([5, 6], 3)
    next(stream)
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        lambda: model.load_lora_adapter("adapter.gguf"),
        lambda: model.set_lora_adapter(handle),
        lambda: model.remove_lora_adapter(handle),
        lambda: model.free_lora_adapter(handle),
        lambda: model.tokenize("x"),
        lambda: model.detokenize([5]),
        lambda: model.ends_generation(5),
        lambda: model.logits([5]),
        lambda: model.nll([5, 6], [-100, 6]),
        lambda: model.generate([5], 1),
        lambda: next(stream),
    ]
    for use in uses:
        with pytest.raises(UsageError, match=r"tiny\.gguf is closed"):
            use()


def test_a_forgotten_model_gives_its_memory_back(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context goes before the model it points into."""
    model = LlamaModel(tiny_path, threads=1)
    model.logits([5])
    library = model._library
    freed: list[str] = []

    def watch(name: str) -> None:
        function = getattr(library, name)

        def watched(address: int) -> None:
            freed.append(name)
            function(address)

        monkeypatch.setattr(library, name, watched)

    watch("llama_free")
    watch("llama_model_free")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert freed == ["llama_free", "llama_model_free"]


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path: Path, tiny_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes(tiny_path.read_bytes()[:-1000])
    reasons = {
        "absent.gguf": "No such file or directory",
        "text.gguf": "invalid magic characters: 'no m', expected 'GGUF'",
        "cut.gguf": "data is not within the file bounds",
    }
    for name, reason in reasons.items():
        with pytest.raises(FileError, match=reason):
            LlamaModel(tmp_path / name)


def test_a_given_context_length_is_kept_to(tiny_path: Path) -> None:
    with LlamaModel(tiny_path, context_length=20, threads=1) as model:
        assert len(model.logits(list(range(5, 25)))) == 20
        with pytest.raises(UsageError, match="21 tokens are more than the context of 20"):
            model.logits(list(range(5, 26)))
        with pytest.raises(UsageError, match="21 tokens are more than the context of 20"):
            model.generate(list(range(5, 25)), 1)


def test_arguments_out_of_range_are_refused(tiny_path: Path) -> None:
    with pytest.raises(UsageError, match="context_length must be at least 1, not 0"):
        LlamaModel(tiny_path, context_length=0)
    with pytest.raises(UsageError, match="threads must be at least 1, not -2"):
        LlamaModel(tiny_path, threads=-2)


def test_what_the_machine_cannot_hold_or_compute_is_a_machine_error(
    tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the model is still of use afterwards."""
    library = tiny._library
    with monkeypatch.context() as patch:
        patch.setattr(library, "llama_init_from_model", lambda *_: None)
        with pytest.raises(MachineError, match="can't make a context of 512 tokens"):
            tiny.logits([5])
    expected = tiny.logits([5])
    with monkeypatch.context() as patch:
        patch.setattr(library, "llama_decode", lambda *_: -3)
        with pytest.raises(MachineError, match="could not compute 1 tokens"):
            tiny.logits([5])
    assert np.array_equal(tiny.logits([5]), expected)
