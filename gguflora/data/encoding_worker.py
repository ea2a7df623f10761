"""A process that makes tokens of examples: python -m gguflora.data.encoding_worker.

It reads pickles from standard input: first a Preparation, then lists of examples, each of which it answers on standard
output with a list of what became of them. It ends with its input. encoding_process.py is its other end.
"""

from __future__ import annotations

import pickle
import sys
import traceback

from gguflora.data.example import Example
from gguflora.data.preparation import Outcome, Preparation, prepare_one
from gguflora.errors import GgufloraError


def main() -> None:
    """Serve until the input ends."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    how = pickle.load(requests)
    while True:
        try:
            examples = pickle.load(requests)
            pickle.dump([_outcome(example, how) for example in examples], replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            return  # the other side has gone


def _outcome(example: Example, how: Preparation) -> Outcome:
    try:
        return prepare_one(example, how)
    except GgufloraError as error:
        return error
    except Exception:  # a bug: raised where its traceback is shown
        return RuntimeError(traceback.format_exc())


if __name__ == "__main__":
    main()
