"""How full are steps and their rows when steps are made of tokens? On the GSM8K rows, for any model's tokenizer.

    python -m benchmarks.batch_tokens [--model GGUF]

Prints only; no model is run. Beside it stands what the same number of tokens, as a number of examples, would give.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.workload import open_workload, smollm2
from gguflora.config import TrainingConfig
from gguflora.data.packing import best_fit, fewest
from gguflora.data.steps import plan_steps

ROOMS = (1024, 2048)
ROWS = (1, 2, 4, 8)


def main() -> None:
    """Print a line for each number of rows in a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF (SmolLM2)")
    lengths = [len(example.tokens) for example in open_workload(parser.parse_args().model or smollm2()).encoded]
    print(f"{len(lengths)} examples, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} each")
    for room in ROOMS:
        for rows in ROWS:
            most = rows * room
            tokens = plan_steps(lengths, TrainingConfig(batch_tokens=most, epochs=3))
            each = max(1, most * len(lengths) // sum(lengths))
            examples = plan_steps(lengths, TrainingConfig(batch_size=each, epochs=3))
            by_tokens = [[lengths[index] for index in tokens.examples(step)] for step in range(tokens.total)]
            by_examples = [[lengths[index] for index in examples.examples(step)] for step in range(examples.total)]
            whole = [step for number, step in enumerate(by_tokens, 1) if not tokens.is_end(number)]
            print(
                f"{rows} x {room}: steps {share(map(sum, whole), most)} full, rows {filled(whole, room, tight=True)}; "
                f"by best fit alone {filled(whole, room, tight=False)}; "
                f"with the epochs' last steps {filled(by_tokens, room, tight=True)}; "
                f"{each} examples a step: rows {filled(by_examples, room, tight=False)}"
            )


def share(sizes: Iterable[int], most: int) -> str:
    """How full things are that could each hold `most`."""
    values = list(sizes)
    return f"{sum(values) / len(values) / most:.2%}"


def filled(steps: Sequence[Sequence[int]], room: int, *, tight: bool) -> str:
    """How full the rows of all steps are."""
    lay = fewest if tight else best_fit
    rows = [[step[index] for index in row] for step in steps for row in lay(step, room)]
    return share(map(sum, rows), room)


if __name__ == "__main__":
    main()
