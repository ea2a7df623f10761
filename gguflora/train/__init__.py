"""Training: the loop, what it keeps, and what it leaves on disk."""

from gguflora.train.checkpoint import STATE_FOLDER, Checkpoints, Loaded, load_newest_state
from gguflora.train.evaluate import Measured, evaluate
from gguflora.train.loop import Job, first_batch, summary, train
from gguflora.train.state import State, named_parameters, new_state
from gguflora.train.step import Method

__all__ = [
    "STATE_FOLDER",
    "Checkpoints",
    "Job",
    "Loaded",
    "Measured",
    "Method",
    "State",
    "evaluate",
    "first_batch",
    "load_newest_state",
    "named_parameters",
    "new_state",
    "summary",
    "train",
]
