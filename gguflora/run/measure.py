"""What `gguflora eval` does: the loss of a model, with an adapter or without, in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gguflora.config import DataConfig, TemplateConfig
from gguflora.data import Example
from gguflora.errors import UsageError
from gguflora.events import Progress, unseen
from gguflora.gguf import Adapter, check_fits, read_adapter
from gguflora.kernels.operations import choose_operations
from gguflora.model import Decoder, Workspace, from_adapter, load_decoder, with_pairs
from gguflora.run.first_use import wait_for_operations
from gguflora.run.opening import Base, open_base
from gguflora.run.setting import bound_product_caches, set_threads
from gguflora.run.template import with_adapters_setting
from gguflora.run.tokens import Encoding, Part, prepared
from gguflora.train import Method, evaluate

MICRO_BATCH_TOKENS = 2048

_log = logging.getLogger(__name__)


def measure(
    model: Path,
    examples: Iterable[Example],
    lora: Path | None,
    scale: float,
    config: TemplateConfig = TemplateConfig(),  # noqa: B008 (frozen)
    progress: Progress = unseen,
) -> dict[str, Any]:
    """The mean nll of the trained tokens of `examples`.

    Args:
        model: GGUF file.
        examples: to measure on, gone through twice and never held.
        lora: an adapter to put on the model.
        scale: factor of its strength.
        config: the template and its options; where it has none, those that the adapter was trained with.
        progress: told how far encoding is.

    Returns:
        nll, tokens (how many), perplexity, examples; and model, lora, scale, skipped.

    Raises:
        GgufloraError: a file can't be used, or the adapter belongs to another base.
    """
    adapter = read_adapter(lora) if lora else None
    if lora and adapter:
        config = with_adapters_setting(config, lora, adapter.chat)
    base = open_base(model, config)
    if base.template.notice:
        _log.warning("%s", base.template.notice)
    options = DataConfig(max_length=base.spec.context_length, token_cache="off")
    measured_on = prepared(base, Part.whole(examples), options, Encoding(progress=progress))
    set_threads(None)
    bound_product_caches()
    wait_for_operations()
    measured = evaluate(
        _decoder(base, lora, adapter, scale),
        measured_on.encoded,
        MICRO_BATCH_TOKENS,
        Method(Workspace(MICRO_BATCH_TOKENS, choose_operations(torch.float32, "auto")[0])),
    )
    return {
        "nll": measured.nll,
        "tokens": measured.tokens,
        "perplexity": math.exp(min(measured.nll, 700.0)),  # the largest that a float can hold
        "examples": len(measured_on.encoded),
        "model": str(model),
        "lora": str(lora) if lora else None,
        "scale": scale if lora else None,
        "skipped": {reason: sources.count for reason, sources in measured_on.skipped.items()},
    }


def _decoder(base: Base, lora: Path | None, adapter: Adapter | None, scale: float) -> Decoder:
    if not math.isfinite(scale):
        raise UsageError(f"--scale must be a finite number, not {scale}.")
    if lora is None or adapter is None:
        return load_decoder(base.gguf, base.spec, torch.float32)
    check_fits(lora, adapter, base.gguf, base.identity)
    decoder = load_decoder(base.gguf, base.spec, torch.float32)
    ranks = {pair.rank for pair in adapter.pairs.values()}
    if len(ranks) != 1:
        raise UsageError(f"{lora} mixes pairs of ranks {sorted(ranks)}, which is not supported yet.")
    return with_pairs(decoder, from_adapter(adapter), scale * adapter.alpha / ranks.pop())
