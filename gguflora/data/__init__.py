"""Examples: made or loaded, turned into tokens and labels, ordered, and packed into micro-batches."""

from gguflora.data.catalogue import Catalogue, catalogue_of, id_of
from gguflora.data.encoded import NOT_TRAINED, Encoded
from gguflora.data.encoding import Account, Prepared, encode_all, prepare
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
from gguflora.data.named import Named, joined
from gguflora.data.order import permutation, step_indices, steps_per_epoch
from gguflora.data.packing import MicroBatch, best_fit, pack, packed
from gguflora.data.preparation import Preparation, filter_by_length, prepare_one
from gguflora.data.reading import iterate_examples
from gguflora.data.rows import rows_of, switches_of
from gguflora.data.split import (
    choose_validation,
    default_validation_share,
    overlap,
    repeats,
    train_validation_split,
)
from gguflora.data.steps import StepPlan, plan_steps
from gguflora.data.store import EncodedStore, lengths_of, map_store, open_store, trained_tokens, write_store
from gguflora.data.streamed import StreamedExamples, open_examples
from gguflora.data.tools import ToolCall

__all__ = [
    "NOT_TRAINED",
    "Account",
    "Catalogue",
    "Completion",
    "Conversation",
    "Encoded",
    "EncodedStore",
    "Example",
    "Message",
    "MicroBatch",
    "Named",
    "Preparation",
    "Prepared",
    "StepPlan",
    "StreamedExamples",
    "ToolCall",
    "best_fit",
    "catalogue_of",
    "choose_validation",
    "dataset_hash",
    "default_validation_share",
    "encode_all",
    "encode_example",
    "filter_by_length",
    "id_of",
    "iterate_examples",
    "joined",
    "lengths_of",
    "load_alpaca",
    "load_conversations",
    "load_csv",
    "load_examples",
    "load_jsonl",
    "load_parquet",
    "load_text",
    "map_store",
    "open_examples",
    "open_store",
    "overlap",
    "pack",
    "packed",
    "permutation",
    "plan_steps",
    "prepare",
    "prepare_one",
    "repeats",
    "rows_of",
    "save_jsonl",
    "step_indices",
    "steps_per_epoch",
    "switches_of",
    "train_validation_split",
    "trained_tokens",
    "write_store",
]
