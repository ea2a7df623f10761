"""The base as a network that runs, and the pairs that are trained on it."""

from gguflora.model.decoder import Decoder, hidden_states, logits, row_loss, with_pairs
from gguflora.model.load import check_types, load_decoder
from gguflora.model.lora import LoraPair, Pairs, from_adapter, new_pairs, to_adapter

__all__ = [
    "Decoder",
    "LoraPair",
    "Pairs",
    "check_types",
    "from_adapter",
    "hidden_states",
    "load_decoder",
    "logits",
    "new_pairs",
    "row_loss",
    "to_adapter",
    "with_pairs",
]
