"""The base as a network that runs, and the pairs that are trained on it."""

from gguflora.model.decoder import Decoder, hidden_states, logits, row_loss, with_pairs
from gguflora.model.dropout import Dropout
from gguflora.model.explicit import row_gradients, row_nll
from gguflora.model.load import load_decoder
from gguflora.model.lora import LoraPair, Pairs, from_adapter, new_pairs, to_adapter
from gguflora.model.row import PackedRow
from gguflora.model.trace import Trace
from gguflora.model.workspace import Workspace

__all__ = [
    "Decoder",
    "Dropout",
    "LoraPair",
    "PackedRow",
    "Pairs",
    "Trace",
    "Workspace",
    "from_adapter",
    "hidden_states",
    "load_decoder",
    "logits",
    "new_pairs",
    "row_gradients",
    "row_loss",
    "row_nll",
    "to_adapter",
    "with_pairs",
]
