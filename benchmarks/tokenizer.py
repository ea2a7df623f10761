"""How fast is a tokenizer, in MB of English text a second and core? On the GSM8K texts, repeated.

    python -m benchmarks.tokenizer [--model GGUF ...] [--megabytes 4]

Prints only. Of each model: the first pass over the texts, when every word is new to what remembers words, and the text
repeated. The time is the processor's, of one process.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.workload import DATA, smollm2
from gguflora.gguf import open_gguf
from gguflora.tokenizer import load_tokenizer


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", help="a GGUF; repeat for several (SmolLM2)")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text in all")
    given = parser.parse_args()
    texts = gsm8k()
    passes = max(2, round(given.megabytes * 1e6 / sum(len(text.encode()) for text in texts)))
    for path in given.model or [smollm2()]:
        started = time.process_time()
        tokenizer = load_tokenizer(open_gguf(path))
        loaded = time.process_time() - started
        speeds = []
        for _ in range(passes):
            started = time.process_time()
            tokens = sum(len(tokenizer.encode(text)) for text in texts)
            speeds.append(sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - started))
        rest = len(speeds[1:]) / sum(1 / speed for speed in speeds[1:])
        print(
            f"{path.name}: {len(tokenizer.vocabulary.tokens)} tokens loaded in {loaded:.2f} s; "
            f"{speeds[0]:.2f} MB/s in the first pass, {rest:.2f} MB/s repeated ({tokens} tokens a pass)"
        )


def gsm8k() -> list[str]:
    """The texts of the repository's GSM8K rows: questions and answers, each a document."""
    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [message["content"] for record in records for message in record["messages"]]


if __name__ == "__main__":
    main()
