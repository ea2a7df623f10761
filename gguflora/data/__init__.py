"""Examples: made or loaded, turned into tokens and labels, ordered, and packed into micro-batches."""

from gguflora.data.example import Completion, Conversation, Example, Message
from gguflora.data.formats import dataset_hash, load_alpaca, load_examples, load_jsonl, save_jsonl
from gguflora.data.labels import NOT_TRAINED, Encoded, encode_example
from gguflora.data.order import permutation, step_indices, steps_per_epoch
from gguflora.data.packing import MicroBatch, best_fit, pack
from gguflora.data.preparation import Prepared, filter_by_length, prepare
from gguflora.data.split import default_validation_share, duplicate_count, overlap_count, train_validation_split

__all__ = [
    "NOT_TRAINED",
    "Completion",
    "Conversation",
    "Encoded",
    "Example",
    "Message",
    "MicroBatch",
    "Prepared",
    "best_fit",
    "dataset_hash",
    "default_validation_share",
    "duplicate_count",
    "encode_example",
    "filter_by_length",
    "load_alpaca",
    "load_examples",
    "load_jsonl",
    "overlap_count",
    "pack",
    "permutation",
    "prepare",
    "save_jsonl",
    "step_indices",
    "steps_per_epoch",
    "train_validation_split",
]
