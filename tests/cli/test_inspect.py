"""What `inspect` says of a file is what gguf-py reads in it, and what numpy makes of its pairs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguflora.gguf import (
    ChatSetting,
    GgmlType,
    Pair,
    Tensor,
    ValueType,
    f32,
    identity_of,
    open_gguf,
    write_adapter,
    write_gguf,
)
from gguflora.gguf.writer import Value
from tests.gguf.test_split import split_keys, tensors_of, typed
from tests.runs import command
from tests.tiny import random_adapter, tiny_llama
from tests.tokenizer.vocabularies import write_vocabulary


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf")


def inspected(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert command("inspect", path, "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    return result


def text(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert command("inspect", *arguments) == 0
    return capsys.readouterr().out


def changed(model: Path, name: str, metadata: dict[str, Value], *more: Tensor) -> Path:
    """A copy of the model with other metadata, and with tensors added or put in the place of those of their name."""
    whole = open_gguf(model)
    tensors = {tensor.name: tensor for tensor in (*tensors_of(whole, list(whole.tensors)), *more)}
    path = model.with_name(name)
    write_gguf(path, typed(whole) | metadata, list(tensors.values()))
    return path


# --- a model ---


def test_a_model_is_what_gguf_py_reads(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    reader = gguf.GGUFReader(smollm2_path)
    field = {key: reader.fields[key].contents() for key in reader.fields if "tokens" not in key and "merges" not in key}
    found = inspected(capsys, smollm2_path)
    assert found["kind"] == "model"
    assert found["name"] == field["general.name"]
    assert found["architecture"] == field["general.architecture"] == "llama"
    assert found["bytes"] == smollm2_path.stat().st_size
    assert found["parts"] == {str(smollm2_path): smollm2_path.stat().st_size}
    assert found["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for tensor in reader.tensors:
        use = {"tensors": 1, "parameters": int(tensor.n_elements), "bytes": int(tensor.n_bytes)}
        types[tensor.tensor_type.name].update(use)
    assert found["types"] == {name: dict(use) for name, use in types.items()}
    assert list(found["types"]) == sorted(types, key=lambda name: -types[name]["bytes"])
    keys = {
        "layers": "block_count",
        "width": "embedding_length",
        "heads": "attention.head_count",
        "kv_heads": "attention.head_count_kv",
        "head_dim": "rope.dimension_count",
        "ffn": "feed_forward_length",
        "context_length": "context_length",
        "rope_base": "rope.freq_base",
        "epsilon": "attention.layer_norm_rms_epsilon",
    }
    assert found["hyperparameters"] == {name: field[f"llama.{key}"] for name, key in keys.items()} | {
        "vocabulary": len(reader.fields["tokenizer.ggml.tokens"].data),
        "tied": True,
        "rope_scale": 1.0,
    }


def test_the_tokenizer_and_the_template_are_those_of_the_file(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    reader = gguf.GGUFReader(smollm2_path)
    found = inspected(capsys, smollm2_path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    bos, eos = (reader.fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("bos", "eos"))
    assert found["tokenizer"] == {
        "model": "gpt2",
        "pre": reader.fields["tokenizer.ggml.pre"].contents(),
        "tokens": len(tokens),
        "bos": {"id": bos, "text": tokens[bos]},
        "eos": {"id": eos, "text": tokens[eos]},
        "eot": {"id": 2, "text": "<|im_end|>"},
        "add_bos": False,
        "add_eos": False,
    }
    source = reader.fields["tokenizer.chat_template"].contents()
    template = found["chat_template"]
    assert template["characters"] == len(source)
    assert template["others"] == []
    for shown, line in zip(template["first_lines"], source.splitlines(), strict=False):
        assert line.startswith(shown.removesuffix(" ..."))
    assert len(template["first_lines"]) == 4
    identity = asdict(identity_of(open_gguf(smollm2_path)))
    assert found["identity"] == identity
    assert template["sha256"] == identity["template"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_targets_are_the_models_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool):
    path = tiny_llama(tmp_path / "tiny.gguf", tied=tied)
    matrices = Counter(
        (tensor.name.split(".")[-2], tuple(int(n) for n in reversed(tensor.shape)))
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"
    )
    found = inspected(capsys, path)
    assert {(t["stem"], tuple(t["shape"])): t["tensors"] for t in found["targets"]} == dict(matrices)
    assert {t["stem"] for t in found["targets"] if not t["default"]} == (set() if tied else {"output"})
    assert (found["trainable"], found["obstacles"]) == (True, [])


def test_a_window_and_its_layers_are_shown(gemma3_path: Path, capsys: pytest.CaptureFixture[str]):
    """Gemma 3: every sixth layer sees everything (llama.cpp, src/models/gemma3.cpp)."""
    numbers = inspected(capsys, gemma3_path)["hyperparameters"]
    assert (numbers["window"], numbers["layers"], numbers["layers_with_window"]) == (512, 18, 15)
    assert (numbers["rope_base"], numbers["rope_base_with_window"]) == (1e6, 1e4)


def test_a_model_in_parts_is_one_model_with_its_parts(model: Path, capsys: pytest.CaptureFixture[str]):
    whole = open_gguf(model)
    names = list(whole.tensors)
    paths = [model.with_name(f"tiny-0000{number + 1}-of-00002.gguf") for number in (0, 1)]
    for number, part in enumerate((names[:9], names[9:])):
        metadata = (typed(whole) if number == 0 else {}) | split_keys(number, 2, len(names))
        write_gguf(paths[number], metadata, tensors_of(whole, part))
    expected, found = inspected(capsys, model), inspected(capsys, paths[0])
    assert found["parts"] == {str(path): path.stat().st_size for path in paths}
    assert found["bytes"] == sum(path.stat().st_size for path in paths)
    for key in ("types", "parameters", "hyperparameters", "identity", "targets", "trainable"):
        assert found[key] == expected[key], key
    assert str(paths[1]) in text(capsys, paths[0])


def test_everything_that_a_person_should_see_is_shown(smollm2_path: Path, capsys: pytest.CaptureFixture[str]):
    out = text(capsys, smollm2_path)
    for part in (
        "(llama, 134.5M parameters)",
        str(smollm2_path) + ", 98.4 MB",
        "Q4_1      210      106.2M   66.4 MB",
        "layers 30, width 576, heads 9, kv heads 3, head dim 64",
        "rope base 100000",
        "gpt2, pre smollm, 49152 tokens",
        "EOS 2 '<|im_end|>'",
        "adds BOS: no",
        "it begins:\n            | {% for message in messages %}",
        identity_of(open_gguf(smollm2_path)).base,
        "ffn_down        30 x 576 x 1536",
        "this version can train it",
    ):
        assert part in out


# --- what is not supported ---


def test_another_architecture_is_shown_as_far_as_the_file_states_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One of experts, with a number of key heads for each layer, written by gguf-py."""
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "dbrx2")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    writer.add_head_count_kv([8, 2, 2])
    writer.add_expert_count(16)
    writer.add_context_length(512)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["[CLS]", "a", "b"])
    writer.add_bos_token_id(0)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspected(capsys, tmp_path / "other.gguf")
    assert found["hyperparameters"] == {
        "layers": 3,
        "width": 64,
        "heads": 8,
        "kv_heads": [8, 2, 2],
        "experts": 16,
        "context_length": 512,
        "vocabulary": 3,
    }
    tokenizer = found["tokenizer"]
    assert (tokenizer["model"], tokenizer["tokens"], tokenizer["bos"]) == ("bert", 3, {"id": 0, "text": None})
    assert (tokenizer["add_bos"], tokenizer["eos"], found["chat_template"]) == (None, None, None)
    assert found["types"] == {"F32": {"tensors": 1, "parameters": 192, "bytes": 768}}
    assert found["targets"] == []
    assert found["trainable"] is False
    architecture, tokenizer = found["obstacles"]
    assert "architecture 'dbrx2' is not supported" in architecture
    assert "'bert'" in tokenizer
    out = text(capsys, tmp_path / "other.gguf")
    assert "kv heads 8 2 2" in out
    assert "not possible: " + architecture in out
    assert "absent: llama.cpp takes ChatML" in out


def test_the_type_that_is_not_supported_is_named_and_the_rest_is_shown(model: Path, capsys: pytest.CaptureFixture[str]):
    values = np.ones((88, 48), np.int32)
    path = changed(model, "typed.gguf", {}, Tensor("blk.1.ffn_up.weight", GgmlType.I32, (88, 48), values))
    found = inspected(capsys, path)
    assert found["trainable"] is False
    [obstacle] = found["obstacles"]
    assert "blk.1.ffn_up.weight has type I32" in obstacle
    assert found["types"]["I32"] == {"tensors": 1, "parameters": 88 * 48, "bytes": 4 * 88 * 48}
    assert found["hyperparameters"]["layers"] == 3
    assert len(found["targets"]) == 7


def test_the_tensor_that_is_not_supported_is_named_and_the_rest_is_shown(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    path = changed(model, "extra.gguf", {}, f32("blk.1.ssm_in.weight", np.ones((2, 3))))
    found = inspected(capsys, path)
    [obstacle] = found["obstacles"]
    assert "blk.1.ssm_in.weight" in obstacle
    assert found["hyperparameters"]["head_dim"] == 10
    assert found["tokenizer"]["eot"]["text"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.token_type": (ValueType.INT32, [1, 1])}, "2 token types"),
        ({"tokenizer.chat_template": (ValueType.STRING, "{% for")}, "The chat template of"),
        ({"tokenizer.chat_template": (ValueType.UINT32, 3)}, "tokenizer.chat_template is not text"),
        ({"llama.rope.scaling.type": (ValueType.STRING, "yarn")}, "yarn"),
    ],
)
def test_each_obstacle_is_told_and_only_that(
    model: Path, capsys: pytest.CaptureFixture[str], metadata: dict[str, Value], words: str
):
    found = inspected(capsys, changed(model, "broken.gguf", metadata))
    [obstacle] = found["obstacles"]
    assert words in obstacle
    assert found["trainable"] is False
    assert found["tokenizer"]["tokens"] == 300
    assert found["hyperparameters"]["layers"] == 3


# --- a vocabulary alone ---


def test_a_vocabulary_shows_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more: dict[str, Value] = {
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
        "tokenizer.chat_template.tool_use": (ValueType.STRING, "tools"),
    }
    path = write_vocabulary(tmp_path / "v.gguf", ["<s>", "a", "b", "ab"], ["a b"], more)
    found = inspected(capsys, path)
    assert found["kind"] == "vocabulary"
    assert found["tokenizer"] == {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": 4,
        "bos": {"id": 0, "text": "<s>"},
        "eos": {"id": 0, "text": "<s>"},
        "eot": None,
        "add_bos": True,
        "add_eos": False,
    }
    assert found["chat_template"]["others"] == ["tool_use"]
    assert (found["identity"], found["targets"], found["trainable"]) == (None, [], False)
    assert "holds no weights" in found["obstacles"][0]
    assert "adds BOS: yes, adds EOS: no" in text(capsys, path)


# --- an adapter ---


def test_an_adapters_norms_are_numpys(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = open_gguf(model)
    chat = ChatSetting('{"enable_thinking": false}', "ab" * 32)
    adapter = replace(random_adapter(base, rank=5, scale=2.5), base=identity_of(base), chat=chat)
    # Another rank on one of them: its scale is another as well.
    wide = random_adapter(base, rank=7, seed=3).pairs["blk.2.attn_q.weight"]
    adapter = replace(adapter, pairs=dict(adapter.pairs) | {"blk.2.attn_q.weight": wide})
    path = tmp_path / "adapter.gguf"
    write_adapter(path, adapter)
    found = inspected(capsys, path)
    assert (found["kind"], found["architecture"], found["alpha"], found["ranks"]) == ("adapter", "llama", 12.5, [5, 7])
    assert found["chat"] == {"options": '{"enable_thinking": false}', "template": "ab" * 32}
    assert found["bytes"] == path.stat().st_size
    assert found["types"]["F32"]["tensors"] == 2 * len(adapter.pairs) == 42
    changes: dict[str, list[float]] = defaultdict(list)
    for pair in found["pairs"]:
        a, b = (part.astype(np.float64) for part in _matrices(adapter.pairs[pair["tensor"]]))
        change = np.linalg.norm(12.5 / a.shape[0] * b @ a)
        assert pair["rank"] == a.shape[0]
        assert pair["shape"] == [b.shape[0], a.shape[1]]
        assert pair["lora_a"] == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert pair["lora_b"] == pytest.approx(np.linalg.norm(b), rel=1e-12)
        assert pair["change"] == pytest.approx(change, rel=1e-12)
        assert pair["tensor"] == f"blk.{pair['layer']}.{pair['stem']}.weight"
        changes[pair["stem"]].append(float(change))
    assert len(found["pairs"]) == 21
    assert [stem["stem"] for stem in found["stems"]] == list(changes)
    for stem in found["stems"]:
        assert stem["pairs"] == 3
        assert stem["change"] == pytest.approx(np.mean(changes[stem["stem"]]), rel=1e-12)
        assert stem["largest_change"] == pytest.approx(max(changes[stem["stem"]]), rel=1e-12)
        assert stem["ranks"] == ([5, 7] if stem["stem"] == "attn_q" else [5])


def _matrices(pair: Pair) -> tuple[Any, Any]:
    return pair.lora_a, pair.lora_b


def test_the_base_of_an_adapter_is_found_where_it_is_known(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = open_gguf(model)
    path = tmp_path / "adapter.gguf"
    write_adapter(path, replace(random_adapter(base), base=identity_of(base)))
    found = inspected(capsys, path)
    assert found["base"] == asdict(identity_of(base))
    assert found["base_files"] == [str(model)]
    assert str(model) in text(capsys, path)
    model.write_bytes(b"GGUF")  # another file now
    assert inspected(capsys, path)["base_files"] == []
    assert "no file with these weights is known" in text(capsys, path)


def test_an_adapter_of_another_program_states_no_base(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "adapter.gguf"
    write_adapter(path, random_adapter(open_gguf(model)))
    found = inspected(capsys, path)
    assert (found["base"], found["base_files"]) == (None, [])
    assert "not stated" in text(capsys, path)


def test_pairs_lists_each_of_them_and_a_pair_without_effect_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = random_adapter(open_gguf(model))
    first, *_ = adapter.pairs
    fresh = Pair(adapter.pairs[first].lora_a, np.zeros_like(adapter.pairs[first].lora_b))
    path = tmp_path / "adapter.gguf"
    write_adapter(path, replace(adapter, pairs=dict(adapter.pairs) | {first: fresh}))
    short, long = text(capsys, path), text(capsys, path, "--pairs")
    assert long.startswith(short)
    assert not [name for name in adapter.pairs if name in short]
    assert not [name for name in adapter.pairs if name not in long]
    assert "21 pairs, rank 5, alpha 12.5" in short
    assert "1 pairs change nothing" in short


def test_pairs_is_refused_where_there_are_none(model: Path, capsys: pytest.CaptureFixture[str]):
    assert command("inspect", model, "--pairs") == 2
    assert "--pairs" in capsys.readouterr().err


# --- strangers' files ---

HOSTILE = "\x1b[2J\x1b]0;x\x07 \u202e\r\n[red]"


def test_names_in_a_file_do_nothing_on_a_terminal(model: Path, capsys: pytest.CaptureFixture[str]):
    string = (ValueType.STRING, HOSTILE)
    path = changed(
        model,
        "hostile.gguf",
        {
            "general.name": string,
            "general.architecture": string,
            "tokenizer.ggml.model": string,
            "tokenizer.ggml.pre": string,
            "tokenizer.chat_template": (ValueType.STRING, "line\x1b[31m\n\u202e\x07 second"),
        },
    )
    out = text(capsys, path)
    assert not [c for c in out if not (c.isprintable() or c == "\n")]
    assert "\\x1b[2J" in out
    assert "| line\\x1b[31m" in out
    assert "| \\u202e\\x07 second" in out
    assert inspected(capsys, path)["name"] == HOSTILE


def test_a_file_that_is_no_gguf_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(60))
    for options in ([], ["--json"]):
        assert command("inspect", path, *options) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(r"gguflora: .*x\.gguf is not a GGUF file.*\n", captured.err)


def test_a_number_that_json_can_not_hold_is_text(model: Path, capsys: pytest.CaptureFixture[str]):
    path = changed(
        model,
        "nan.gguf",
        {"general.architecture": (ValueType.STRING, "x"), "x.rope.freq_base": (ValueType.FLOAT32, float("nan"))},
    )
    assert inspected(capsys, path)["hyperparameters"]["rope_base"] == "nan"


def test_inspect_starts_without_torch(model: Path, tmp_path: Path):
    path = tmp_path / "adapter.gguf"
    write_adapter(path, random_adapter(open_gguf(model)))
    check = (
        "import sys\n"
        "from gguflora.cli import main\n"
        "for path in sys.argv[1:]:\n"
        "    try: main(['inspect', path])\n"
        "    except SystemExit as ended: assert ended.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check, str(model), str(path)], check=True, capture_output=True, timeout=60)
