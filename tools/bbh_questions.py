"""Write BIG-Bench Hard questions behind their few-shot heads as a batch file.

    python tools/bbh_questions.py --data ../shared/data/prompts --count 1000 > questions.jsonl
    foreword batch questions.jsonl --model nano --out answers.jsonl --json

`--data` is a directory with `bbh/TASK.json` and `bbh-cot-prompts/TASK.txt`, as in the public
repository of the benchmark (suzgunmirac/BIG-Bench-Hard). The benchmark is for evaluation only:
nothing of it belongs into training data, nor into this project's tree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path


def questions(data: Path) -> Iterator[tuple[str, str]]:
    """Every question as (id, prompt), task by task: a head's questions follow each other."""
    for path in sorted((data / "bbh").glob("*.json")):
        text = (data / "bbh-cot-prompts" / f"{path.stem}.txt").read_text(encoding="utf-8")
        head = text.split("-----\n", 1)[-1].strip()  # above the line stands the canary notice
        for i, example in enumerate(json.loads(path.read_text(encoding="utf-8"))["examples"]):
            question = f"Q: {example['input']}\nA: Let's think step by step."
            yield f"{path.stem}-{i}", f"{head}\n\n{question}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/prompts"))
    parser.add_argument("--count", type=int, default=1000, help="questions, spread over all tasks")
    parser.add_argument("--max-tokens", type=int, default=16)
    arguments = parser.parse_args()
    found = list(questions(arguments.data))
    if not found:
        sys.exit(f"no bbh/*.json in {arguments.data}: give --data")
    count = min(arguments.count, len(found))
    for i in range(count):
        name, prompt = found[i * len(found) // count]
        body = {"model": "any", "prompt": prompt, "max_tokens": arguments.max_tokens}
        line = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
