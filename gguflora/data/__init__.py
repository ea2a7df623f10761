"""Examples: made or loaded, turned into tokens and labels, ordered, and packed into micro-batches."""

from gguflora.data.chunks import chunk
from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.data.example import Completion, Conversation, Example, Message
from gguflora.data.formats import (
    dataset_hash,
    load_alpaca,
    load_conversations,
    load_csv,
    load_examples,
    load_jsonl,
    load_parquet,
    load_text,
    save_jsonl,
)
from gguflora.data.labels import encode_example
from gguflora.data.order import permutation, step_indices, steps_per_epoch
from gguflora.data.packing import MicroBatch, best_fit, pack
from gguflora.data.preparation import Prepared, filter_by_length, prepare, prepare_one
from gguflora.data.reading import iterate_examples
from gguflora.data.rows import rows_of, switches_of
from gguflora.data.split import default_validation_share, duplicate_count, overlap_count, train_validation_split
from gguflora.data.steps import StepPlan, plan_steps
from gguflora.data.tools import ToolCall

__all__ = [
    "NOT_TRAINED",
    "Completion",
    "Conversation",
    "Encoded",
    "Example",
    "Message",
    "MicroBatch",
    "Prepared",
    "StepPlan",
    "ToolCall",
    "best_fit",
    "chunk",
    "dataset_hash",
    "default_validation_share",
    "duplicate_count",
    "encode_example",
    "filter_by_length",
    "iterate_examples",
    "load_alpaca",
    "load_conversations",
    "load_csv",
    "load_examples",
    "load_jsonl",
    "load_parquet",
    "load_text",
    "overlap_count",
    "pack",
    "permutation",
    "plan_steps",
    "prepare",
    "prepare_one",
    "rows_of",
    "save_jsonl",
    "step_indices",
    "steps_per_epoch",
    "switches_of",
    "train_validation_split",
]
