"""LoRA fine-tuning straight on the GGUF you serve.

from gguflora import LoraConfig, LoraTrainer, load_jsonl

trainer = LoraTrainer("model.gguf", LoraConfig(rank=16))
trainer.train(load_jsonl("data.jsonl"))
trainer.save_adapter("adapter.gguf")          # llama-server -m model.gguf --lora adapter.gguf
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguflora.config import ComputeConfig, DataConfig, LoraConfig, ReadConfig, TemplateConfig, TrainingConfig
    from gguflora.data import (
        Example,
        Message,
        filter_by_length,
        iterate_examples,
        load_alpaca,
        load_conversations,
        load_csv,
        load_examples,
        load_jsonl,
        load_parquet,
        load_text,
        open_examples,
        save_jsonl,
        train_validation_split,
    )
    from gguflora.errors import GgufloraError
    from gguflora.llamacpp import LlamaModel
    from gguflora.trainer import LoraTrainer

# Where each public name lives: imported when it is used, so that `import gguflora` does not load torch.
_HOMES = {
    "ComputeConfig": "config",
    "DataConfig": "config",
    "LoraConfig": "config",
    "ReadConfig": "config",
    "TemplateConfig": "config",
    "TrainingConfig": "config",
    "Example": "data",
    "Message": "data",
    "filter_by_length": "data",
    "iterate_examples": "data",
    "load_alpaca": "data",
    "load_conversations": "data",
    "load_csv": "data",
    "load_examples": "data",
    "load_jsonl": "data",
    "load_parquet": "data",
    "load_text": "data",
    "open_examples": "data",
    "save_jsonl": "data",
    "train_validation_split": "data",
    "GgufloraError": "errors",
    "LlamaModel": "llamacpp",
    "LoraTrainer": "trainer",
}

__all__ = [
    "ComputeConfig",
    "DataConfig",
    "Example",
    "GgufloraError",
    "LlamaModel",
    "LoraConfig",
    "LoraTrainer",
    "Message",
    "ReadConfig",
    "TemplateConfig",
    "TrainingConfig",
    "filter_by_length",
    "iterate_examples",
    "load_alpaca",
    "load_conversations",
    "load_csv",
    "load_examples",
    "load_jsonl",
    "load_parquet",
    "load_text",
    "open_examples",
    "save_jsonl",
    "train_validation_split",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gguflora.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gguflora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
