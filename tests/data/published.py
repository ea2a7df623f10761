"""Published chat templates, and for each the token that ends an answer, by hand from the models' own files.

They are those in llama.cpp's source archive (models/templates), which `make templates` puts into build/templates, and a
few that may lie beside the checkout.
"""

from __future__ import annotations

import re
from pathlib import Path

from gguflora.gguf import ValueType
from gguflora.gguf.writer import Value
from tests.tokenizer.vocabularies import pair_vocabulary, write_vocabulary

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "build" / "templates"
BESIDE = ROOT.parent / "shared" / "llama.cpp" / "templates"

_IM_END = "<|im_end|>"
_DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"
_ENDS = {
    "Apertus": "<|assistant_end|>",
    "Apriel-1.6": "<|end|>",
    "ByteDance-Seed-OSS": "<seed:eos>",
    "Cohere": "<|END_OF_TURN_TOKEN|>",
    "GLM": "<|user|>",
    "GigaChat": "<|message_sep|>",
    "Kimi-K3": "<|end_of_msg|>",
    "MiniMax-M1": "<end_of_sentence>",
    "MiniMax": "[e~[",
    "Mistral-Small": "</s>",
    "NVIDIA-Nemotron-Nano-v2": "<SPECIAL_12>",
    "Reka-Edge": "<sep>",
    "Spark2.5": _DEEPSEEK_END,
    "deepseek": _DEEPSEEK_END,
    "fireworks": "<|eot_id|>",
    "google-gemma-2": "<end_of_turn>",
    "google-gemma-4": "<turn|>",
    "ibm-granite": "<|end_of_text|>",
    "inclusionai-ling": "<|role_end|>",
    "llama-cpp-deepseek": _DEEPSEEK_END,
    "llama-cpp-rwkv": "<|rwkv_tokenizer_end_of_text|>",
    "meetkai": "<|eot_id|>",
    "meta-llama": "<|eot_id|>",
    "microsoft-Phi": "<|end|>",
    "mistralai": "</s>",
    "muse-glimmer": "<|eot|>",
    "openai-gpt-oss": "<|return|>",
    "poolside": "</assistant>",
    "tencent-Hy3": "<\uff5chy_eos:opensource\uff5c>",
    "unsloth-Apriel": "<|end|>",
    "unsloth-mistral": "</s>",
    "upstage-Solar": "<|end|>",
}
"""By how the template's name begins, the first that fits; what is not named ends with <|im_end|>."""

_CONTROLS = re.compile(
    r"<\|[^|<>\s'\"]{1,40}\|>|<\uff5c[^\uff5c<>{}\s'\"]{1,40}\uff5c>|\[/?[A-Z_]{3,20}\]|<SPECIAL_\d+>"
    r"|</?(?:assistant|user)>|<\|[a-z_]+>|<[a-z_]+\|>|\[gMASK\]|<sop>|\]~b\]"
)
_BOS = "<s>"
_THINK = ("<think>", "</think>")
_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1


def published(folder: Path = ARCHIVE) -> dict[str, str]:
    """The templates in a folder, by name; none where it is absent."""
    paths = sorted(folder.glob("*.jinja"), key=lambda path: path.stem.lower())
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def end_of(name: str) -> str:
    """What ends an answer with the template `name`."""
    return next((end for start, end in _ENDS.items() if name.startswith(start)), _IM_END)


def write_model(path: Path, name: str, source: str) -> Path:
    """A vocabulary of bytes and of the template's control tokens, in which any text decodes to itself."""
    end = end_of(name)
    controls = list(dict.fromkeys([_BOS, end, *_CONTROLS.findall(source)]))
    types = [_CONTROL] * len(controls) + [_USER_DEFINED] * len(_THINK) + [_NORMAL] * 256
    metadata: dict[str, Value] = {
        "tokenizer.ggml.token_type": (ValueType.INT32, types),
        "tokenizer.ggml.bos_token_id": (ValueType.UINT32, 0),
        "tokenizer.ggml.eos_token_id": (ValueType.UINT32, 1),
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
        "tokenizer.chat_template": (ValueType.STRING, source),
    }
    if name.startswith("GLM"):  # its files say so: a call is followed by what the tool says
        metadata["tokenizer.ggml.eom_token_id"] = (ValueType.UINT32, controls.index("<|observation|>"))
    return write_vocabulary(path, [*controls, *_THINK, *pair_vocabulary()[0][:256]], [], metadata)
