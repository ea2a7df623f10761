"""The template and its options are the same in training, in the adapter's file, and in the commands that serve it."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import pytest

from gguflora.config import DataConfig, LoraConfig, TemplateConfig, TrainingConfig
from gguflora.data import Example
from gguflora.errors import UsageError
from gguflora.events import Event, Finished, Warned
from gguflora.gguf import ChatSetting, open_gguf, read_adapter
from gguflora.llamacpp import LlamaServer
from gguflora.run.template import (
    chat_setting,
    open_template,
    own_options,
    serve_options,
    with_adapters_setting,
)
from gguflora.run.training import Outcome, Request, run
from gguflora.tokenizer import CHATML
from tests.rewritten import rewritten
from tests.tiny import tiny_llama

THINKS = CHATML + "{% if enable_thinking %}<think>{% endif %}"
QUESTION = [{"role": "user", "content": "a"}]
OFF = TemplateConfig(template_option=("enable_thinking=false",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my template.jinja"
    path.write_text(THINKS)
    return path


def test_a_template_is_chosen_by_name_or_from_a_file(model: Path, file: Path):
    gguf = open_gguf(model)
    assert "named SmolLM" in open_template(gguf, TemplateConfig()).render(QUESTION)
    assert open_template(gguf, TemplateConfig("chatml")).render(QUESTION) == "<|im_start|>user\na<|im_end|>\n"
    assert open_template(gguf, TemplateConfig(str(file))).render(QUESTION).endswith("<think>")
    off = TemplateConfig(str(file), ("enable_thinking=false",))
    assert open_template(gguf, off).render(QUESTION) == "<|im_start|>user\na<|im_end|>\n"


def test_a_name_that_is_nothing_is_refused(model: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.write_bytes(b" \n")
    for name, reason in (("chatlm", "neither chatml nor a file"), (str(empty), "is empty")):
        with pytest.raises(UsageError, match=reason):
            open_template(open_gguf(model), TemplateConfig(name))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (TemplateConfig(), []),
        (TemplateConfig("chatml"), ["--chat-template", "chatml"]),
        (OFF, ["--chat-template-kwargs", '{"enable_thinking":false}']),
        (
            TemplateConfig("a b.jinja", ("mood=very happy", "n=3")),
            ["--chat-template-file", "a b.jinja", "--chat-template-kwargs", '{"mood":"very happy","n":3}'],
        ),
    ],
)
def test_llama_server_is_told_the_same(config: TemplateConfig, options: list[str]):
    """By llama-server's own help."""
    assert shlex.split(serve_options(config)) == options


def test_llama_server_renders_the_same_with_the_printed_options(model: Path, file: Path):
    config = TemplateConfig(str(file), ("enable_thinking=false",))
    kwargs = json.loads(shlex.split(serve_options(config))[-1])
    ours = open_template(open_gguf(model), config)
    with LlamaServer(model, chat_template=THINKS, context_length=256, threads=1) as server:
        told = server.apply_template(QUESTION, chat_template_kwargs=kwargs)
        assert ours.render(QUESTION, add_generation_prompt=True) == told
        assert told != server.apply_template(QUESTION)


def test_our_own_commands_take_the_same_options_again(file: Path):
    config = TemplateConfig(str(file), ("mood=very happy", "n=3"))
    assert shlex.split(own_options(config)) == [
        *("--chat-template", str(file)),
        *("--template-option", "mood=very happy", "--template-option", "n=3"),
    ]
    assert own_options(TemplateConfig()) == ""


def test_an_adapters_setting_is_used_where_nothing_is_given(caplog: pytest.LogCaptureFixture):
    chosen = TemplateConfig("chatml", ("enable_thinking=false", "mood=happy"))
    with caplog.at_level(logging.WARNING):
        used = with_adapters_setting(TemplateConfig(), Path("a.gguf"), chat_setting(chosen))
    assert (used.chat_template, used.switches) == ("chatml", chosen.switches)
    assert caplog.text == ""
    assert with_adapters_setting(TemplateConfig(), Path("a.gguf"), ChatSetting()) == TemplateConfig()


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        (TemplateConfig(template_option=("enable_thinking=true",)), OFF),
        (OFF, TemplateConfig()),
        (TemplateConfig("chatml"), TemplateConfig()),
    ],
)
def test_another_setting_than_the_adapters_is_warned_of(
    given: TemplateConfig, trained: TemplateConfig, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        assert with_adapters_setting(given, Path("a.gguf"), chat_setting(trained)) == given
    assert "a.gguf was trained with another chat template or other options" in caplog.text


def events_of(model: Path, folder: Path, template: TemplateConfig) -> list[Event]:
    request = Request(
        model=model,
        examples=[Example.chat(None, f"q{n}", f"a{n}") for n in range(3)],
        validation=None,
        lora=LoraConfig(rank=2),
        data=DataConfig(),
        training=TrainingConfig(epochs=1, threads=1),
        output_dir=folder,
        template=template,
    )
    return list(run(request, Outcome()))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguflora.llamacpp.available", lambda: False)


@pytest.mark.usefixtures("unchecked")
def test_the_adapter_says_how_conversations_were_rendered(model: Path, file: Path, tmp_path: Path):
    config = TemplateConfig(str(file), ("enable_thinking=false",))
    [finished] = [event for event in events_of(model, tmp_path / "run", config) if isinstance(event, Finished)]
    assert finished.adapter
    chat = read_adapter(Path(finished.adapter)).chat
    assert chat.options == '{"enable_thinking": false}'
    assert chat == chat_setting(config)
    [finished] = [event for event in events_of(model, tmp_path / "b", TemplateConfig()) if isinstance(event, Finished)]
    assert finished.adapter
    assert read_adapter(Path(finished.adapter)).chat == ChatSetting()


@pytest.mark.usefixtures("unchecked")
def test_a_model_without_a_template_is_trained_in_chatml_with_a_warning(model: Path, tmp_path: Path):
    bare = rewritten(open_gguf(model), tmp_path / "bare.gguf", keys={"tokenizer.chat_template": None}).path
    warnings = [
        event.message for event in events_of(bare, tmp_path / "a", TemplateConfig()) if isinstance(event, Warned)
    ]
    assert f"{bare} has no chat template: taking llama.cpp's default, ChatML." in warnings
    warnings = [
        event.message
        for event in events_of(bare, tmp_path / "b", TemplateConfig("chatml"))
        if isinstance(event, Warned)
    ]
    assert not any("has no chat template" in warning for warning in warnings)


@pytest.mark.usefixtures("unchecked")
def test_a_run_is_not_resumed_with_other_options(model: Path, file: Path, tmp_path: Path):
    """Also where they change no token of the data, because they are in the adapter's bytes."""
    request = Request(
        model=model,
        examples=[Example.completion("a", "b")],
        validation=None,
        lora=LoraConfig(rank=2),
        data=DataConfig(),
        training=TrainingConfig(epochs=1, threads=1),
        output_dir=tmp_path / "run",
        template=TemplateConfig(str(file)),
    )
    list(run(request, Outcome()))
    again = Request(**{**vars(request), "resume": True, "template": TemplateConfig(str(file), ("enable_thinking=1",))})
    with pytest.raises(UsageError, match="can't be resumed: data template options was"):
        list(run(again, Outcome()))
