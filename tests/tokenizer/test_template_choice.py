"""Which template is used, and that nothing is guessed where a wrong guess would teach nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguflora.errors import DataError, UsageError
from gguflora.gguf import GgufFile, ValueType, open_gguf
from gguflora.gguf.writer import Value
from gguflora.tokenizer import CHATML, load_template
from tests.tokenizer.vocabularies import spelled, write_vocabulary

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
AS_CHATML = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def file(path: Path, *, chatml: bool, template: str | None = None) -> GgufFile:
    controls = ["<s>", "</s>", *(["<|im_start|>", "<|im_end|>"] if chatml else [])]
    tokens = [*controls, *(spelled(chr(byte)) for byte in range(128))]
    more: dict[str, Value] = {
        "tokenizer.ggml.token_type": (ValueType.INT32, [3] * len(controls) + [1] * 128),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, 1),
    }
    if template:
        more["tokenizer.chat_template"] = (ValueType.STRING, template)
    return open_gguf(write_vocabulary(path, tokens, [], more))


def test_an_absent_template_is_chatml_with_a_notice_where_the_vocabulary_has_its_tokens(tmp_path: Path):
    template = load_template(file(tmp_path / "v.gguf", chatml=True))
    assert template.notice == f"{tmp_path / 'v.gguf'} has no chat template: taking llama.cpp's default, ChatML."
    assert template.render(CHAT) == AS_CHATML
    assert template.render(CHAT, add_generation_prompt=True) == AS_CHATML + "<|im_start|>assistant\n"


def test_without_chatmls_tokens_a_conversation_is_refused_with_what_to_give(tmp_path: Path):
    """The model would see the letters of <|im_start|>. Completions need no template, so the file itself is fine."""
    template = load_template(file(tmp_path / "v.gguf", chatml=False))
    assert template.notice == ""
    with pytest.raises(DataError, match=r"v\.gguf has no chat template, and its vocabulary lacks .* --chat-template"):
        template.render(CHAT)


def test_a_given_template_takes_the_place_of_the_files(tmp_path: Path):
    gguf = file(tmp_path / "v.gguf", chatml=False, template="theirs")
    assert load_template(gguf).render([]) == "theirs"
    template = load_template(gguf, source="ours {{ messages | length }}")
    assert template.render(CHAT) == "ours 2"
    assert load_template(gguf, source=CHATML).render(CHAT) == AS_CHATML
    with pytest.raises(DataError, match="can't be used"):
        load_template(gguf, source="{% for %}")


@pytest.mark.parametrize("given", [{"mood": "happy"}, {"mood": 3}, {"mood": None}])
def test_switches_reach_every_rendering(tmp_path: Path, given: dict[str, Any]):
    gguf = file(tmp_path / "v.gguf", chatml=False, template="{{ mood }}{% if enable_thinking %} thinks{% endif %}")
    assert load_template(gguf, switches=given).render([]) == f"{given['mood'] or ''} thinks"
    assert load_template(gguf, switches={**given, "enable_thinking": False}).render([]) == f"{given['mood'] or ''}"


def test_a_switch_that_the_template_does_not_read_is_refused_when_it_is_opened(tmp_path: Path):
    gguf = file(tmp_path / "v.gguf", chatml=False, template="{{ mood }}")
    with pytest.raises(UsageError, match="does not use enable_thinkin: leave it out, or give one of mood"):
        load_template(gguf, switches={"enable_thinkin": False})
