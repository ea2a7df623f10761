"""How fast is a tokenizer, in MB of English text a second and core? And whole examples, by several processes?

    python -m benchmarks.tokenizer [--model GGUF ...] [--megabytes 4] [--processes 2 ...] [--examples 10000]

Prints only. On the GSM8K texts, repeated. Of each model: the first pass over the texts, when every word is new to what
remembers words, and the text repeated (the processor's time, of one process). Then examples (rendered, encoded and
labelled) a second on the wall, by this process alone and by so many more, their start included, in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workload import DATA, smollm2
from gguflora.data import Account, Example, Preparation, encode_all, load_jsonl
from gguflora.gguf import open_gguf
from gguflora.tokenizer import Tokenizer, load_template, load_tokenizer

ROUNDS = 3  # of which the fastest counts


def main() -> None:
    """Print some lines for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", help="a GGUF; repeat for several (SmolLM2)")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text in all")
    parser.add_argument(
        "--processes", type=int, nargs="*", default=[2], help="numbers of processes to compare with one"
    )
    parser.add_argument("--examples", type=int, default=10_000, help="for the processes")
    given = parser.parse_args()
    for path in given.model or [smollm2()]:
        started = time.process_time()
        gguf = open_gguf(path)
        tokenizer = load_tokenizer(gguf)
        loaded = time.process_time() - started
        print(f"{path.name}: {len(tokenizer.vocabulary.tokens)} tokens loaded in {loaded:.2f} s; ", end="")
        print(speed_of_text(tokenizer, given.megabytes), flush=True)
        template = load_template(gguf, vocabulary=tokenizer.vocabulary)
        if template.absent:
            continue  # a vocabulary alone
        examples = load_jsonl(DATA)
        examples *= -(-given.examples // len(examples))
        how = Preparation(tokenizer, template, 2048)
        print(speed_of_examples(examples[: given.examples], how, [1, *given.processes]), flush=True)


def speed_of_text(tokenizer: Tokenizer, megabytes: float) -> str:
    """In words."""
    texts = gsm8k()
    size = sum(len(text.encode()) for text in texts) / 1e6
    speeds = []
    for _ in range(max(2, round(megabytes / size))):
        started = time.process_time()
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        speeds.append(size / (time.process_time() - started))
    rest = len(speeds[1:]) / sum(1 / speed for speed in speeds[1:])
    return f"{speeds[0]:.2f} MB/s in the first pass, {rest:.2f} MB/s repeated ({tokens} tokens a pass)"


def speed_of_examples(examples: Sequence[Example], how: Preparation, processes: Sequence[int]) -> str:
    """In words, for each number of processes."""
    seconds: dict[int, float] = {}
    for _ in range(ROUNDS):
        for count in processes:
            started = time.perf_counter()
            for _ in encode_all(examples, how, Account(), processes=count):
                pass
            taken = time.perf_counter() - started
            seconds[count] = min(taken, seconds.get(count, taken))
    return "; ".join(
        f"{count} process{'es' if count > 1 else ''}: {len(examples) / taken:,.0f} examples/s "
        f"({seconds[processes[0]] / taken:.2f} times)"
        for count, taken in seconds.items()
    )


def gsm8k() -> list[str]:
    """The texts of the repository's GSM8K rows: questions and answers, each a document."""
    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [message["content"] for record in records for message in record["messages"]]


if __name__ == "__main__":
    main()
