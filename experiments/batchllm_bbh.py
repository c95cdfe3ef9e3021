"""BatchLLM on a real engine: BIG-Bench Hard behind its heads, in a cache for four of them.

Claim (BatchLLM, arXiv 2412.03594): a plan that runs together what shares a prefix beats first come,
first served with an LRU cache when the cache is small. The same engine, model and cache run the
same shuffled questions under each policy, in turn; only the order of admission differs.

The model has random weights (what is measured is time, and that all policies write the same
tokens); the prompts are real.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tokenizers import Tokenizer

from experiments.lab import Experiment, data_file
from foreword import LLM, SamplingParams
from foreword.bench import ModelSize, write_random_llama

MODEL = ModelSize(
    name="m30",
    hidden=512,
    intermediate=1408,
    layers=8,
    heads=8,
    kv_heads=4,
    head_dim=64,
    vocab=4096,
    dtype="float32",
    max_context=8192,
)
PER_HEAD = 10
OUTPUT = 16
HEADS_IN_CACHE = 4
BATCHES = (4, 8, 16)
POLICIES = ("fcfs", "lpm:window=128", "lpm", "dfs", "batchllm")


def prompts(per_head: int) -> tuple[list[list[int]], float]:
    """Token ids of `per_head` questions behind each head, and a head's mean length in tokens."""
    tokenizer = Tokenizer.from_file(str(files("foreword") / "models" / "nano" / "tokenizer.json"))
    found: list[list[int]] = []
    heads: list[int] = []
    for path in sorted(data_file("prompts/bbh").glob("*.json")):
        text = data_file(f"prompts/bbh-cot-prompts/{path.stem}.txt").read_text(encoding="utf-8")
        head = text.split("-----\n", 1)[-1].strip()  # above the line stands the canary notice
        heads.append(len(tokenizer.encode(head).ids))
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        for i in range(per_head):
            question = examples[i * len(examples) // per_head]["input"]
            asked = f"{head}\n\nQ: {question}\nA: Let's think step by step."
            found.append(tokenizer.encode(asked).ids)
    return found, mean(heads)


def run(
    directory: Path, asked: list[list[int]], policy: str, batch: int, cache_tokens: int
) -> dict[str, Any]:
    """Answer all prompts with a fresh engine."""
    token_bytes = 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * 4
    llm = LLM(
        directory, policy=policy, max_batch=batch, kv_memory=(cache_tokens + 64) * token_bytes
    )
    llm.generate(asked[0][:64], SamplingParams(max_tokens=2))  # packs the weights
    llm.close()
    start = time.perf_counter()
    results = llm.generate(asked, SamplingParams(max_tokens=OUTPUT))
    seconds = time.perf_counter() - start
    stats = llm.stats
    return {
        "seconds": seconds,
        "computed": stats.computed_prompt_tokens,
        "prompt": stats.prompt_tokens,
        "preemptions": stats.preemptions,
        "answers": [result.outputs[0].token_ids for result in results],
    }


def main() -> None:
    lab = Experiment(
        "batchllm_bbh",
        paper="arXiv 2412.03594",
        claim="a global prefix plan beats FCFS + LRU in wall time when the cache holds four heads",
        seeds=(0, 1, 2),
    )
    lab.expect("gain", "time of FCFS + LRU, at its best batch size, over the plan's", at_least=1.3)
    lab.expect(
        "same",
        "runs of all policies that wrote the same tokens, as a share",
        at_least=1.0,
        every=True,
    )
    lab.expect(
        "control", "the same ratio where the cache holds every head (nothing to gain)", at_most=1.1
    )
    per_head = 3 if lab.quick else PER_HEAD
    asked, head = prompts(per_head)
    own = max(len(ids) for ids in asked) - head
    small = int(HEADS_IN_CACHE * head + 8 * own)
    large = sum(map(len, asked)) + len(asked) * (OUTPUT + 8)
    lab.fact("requests", len(asked))
    lab.fact("mean head, tokens", head)
    lab.fact("small cache, tokens", small)
    lab.fact("model", MODEL.__dict__ if hasattr(MODEL, "__dict__") else str(MODEL))
    lab.fact("threads", torch.get_num_threads())
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_random_llama(MODEL, directory)
        runs: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
        same: list[float] = []
        for seed in lab.seeds:
            order = list(range(len(asked)))
            random.Random(seed).shuffle(order)
            shuffled = [asked[i] for i in order]
            answers: list[list[tuple[int, ...]]] = []
            for batch in BATCHES:
                for policy in POLICIES:
                    done = run(directory, shuffled, policy, batch, small)
                    answers.append(done.pop("answers"))
                    runs.setdefault((policy, batch, "small"), []).append(done)
            for policy in ("fcfs", "batchllm"):
                done = run(directory, shuffled, policy, BATCHES[-1], large)
                answers.append(done.pop("answers"))
                runs.setdefault((policy, BATCHES[-1], "large"), []).append(done)
            same.append(mean(got == answers[0] for got in answers))

    def best(policy: str) -> list[float]:
        """Seconds by seed at the batch size whose median is least."""
        by_batch = [[r["seconds"] for r in runs[policy, batch, "small"]] for batch in BATCHES]
        return min(by_batch, key=median)

    lab.table(
        "wall time by policy and batch size",
        [
            {
                "policy": policy,
                "batch": batch,
                "cache": cache,
                "seconds": median(r["seconds"] for r in found),
                "least": min(r["seconds"] for r in found),
                "most": max(r["seconds"] for r in found),
                "prompt tokens": found[0]["prompt"],
                "computed": int(median(r["computed"] for r in found)),
                "preemptions": int(median(r["preemptions"] for r in found)),
            }
            for (policy, batch, cache), found in runs.items()
        ],
    )
    pairs = zip(best("fcfs"), best("batchllm"), strict=True)
    lab.measured("gain", [slow / fast for slow, fast in pairs])
    lab.measured("same", same)
    control = [
        a["seconds"] / b["seconds"]
        for a, b in zip(
            runs["fcfs", BATCHES[-1], "large"], runs["batchllm", BATCHES[-1], "large"], strict=True
        )
    ]
    lab.measured("control", control)
    lab.finish()


if __name__ == "__main__":
    main()
