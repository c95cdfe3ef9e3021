"""Is the simulator right? Its clock and its counts against the real engine on small runs.

The engine's steps are timed and a cost model fitted to them (`foreword bench calibrate`). Then the
same requests run on the engine and in the simulator, under several policies and cache sizes. The
prompt tokens computed should agree but for the few that are computed for their logits alone; the
time is off by what the cost model leaves out.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.batchllm_bbh import MODEL, prompts
from experiments.lab import Experiment
from foreword import LLM, SamplingParams
from foreword.bench import calibrate, write_random_llama
from foreword.models import LoadedModel, load_model
from foreword.simulation import CostModel, Trace, TraceRequest, WorkerConfig, simulate

STEP_TOKENS = 512
TOKEN_BYTES = 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * 4


def workloads(quick: bool) -> dict[str, tuple[list[list[int]], list[int], int, int]]:
    """Prompts, answers' lengths, cache size in tokens, and seats, by name."""
    rng = random.Random(0)
    asked, head = prompts(1 if quick else 4)
    rng.shuffle(asked)

    def draw(n: int) -> list[int]:
        return rng.choices(range(MODEL.vocab), k=n)

    few = 8 if quick else 48
    shared = draw(1024)
    one_head = [shared + draw(32) for _ in range(few)]
    apart = [draw(rng.randrange(50, 600)) for _ in range(few)]
    mixed = [rng.randrange(4, 120) for _ in range(few)]
    return {
        "bbh, cache for 4 heads": (asked, [16] * len(asked), int(4 * head + 2400), 8),
        "bbh, cache for all": (asked, [16] * len(asked), 200_000, 16),
        "one head, 1,024 tokens": (one_head, [64] * few, 20_000, 32),
        "nothing shared": (apart, mixed, 8_000, 16),
    }


def run_engine(
    loaded: LoadedModel, asked: list[list[int]], lengths: list[int], policy: str, cache: int,
    seats: int,
) -> tuple[float, int, int]:  # fmt: skip
    """Seconds, prompt tokens computed, and the cache's size in tokens, of a real run."""
    llm = LLM(
        loaded,
        policy=policy,
        max_batch=seats,
        max_step_tokens=STEP_TOKENS,
        kv_memory=(cache + 16) * TOKEN_BYTES,
    )
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    start = time.perf_counter()
    llm.generate(asked, params)
    seconds = time.perf_counter() - start
    return seconds, llm.stats.computed_prompt_tokens, llm.engine.capacity


def run_simulator(
    cost: CostModel, asked: list[list[int]], lengths: list[int], policy: str, cache: int,
    seats: int,
) -> tuple[float, int]:  # fmt: skip
    """The same, simulated."""
    requests = tuple(
        TraceRequest(0.0, tuple(ids), len(ids), output)
        for ids, output in zip(asked, lengths, strict=True)
    )
    worker = WorkerConfig(cache_tokens=cache, seats=seats, step_tokens=STEP_TOKENS)
    result = simulate(Trace("check", 1, requests), policy=policy, cost=cost, worker=worker)
    return result.makespan, result.computed_tokens


def main() -> None:
    lab = Experiment(
        "simulator_check",
        paper="ours",
        claim="the simulator's times and counts are the engine's",
        seeds=(0, 1),
    )
    lab.expect("time", "median error of the simulated makespan", at_most=0.15)
    lab.expect("worst", "largest error of the simulated makespan", at_most=0.35)
    lab.expect("tokens", "largest error of the computed prompt tokens", at_most=0.05)
    lab.expect("order", "policy pairs a tenth or more apart that it puts in order", at_least=1.0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_random_llama(MODEL, Path(scratch))
        loaded = load_model(scratch, dtype=MODEL.dtype)
        found = calibrate(loaded, repeats=1 if lab.quick else 3)
        lab.fact("calibration", found.to_dict())
        lab.fact("threads", torch.get_num_threads())
        ordered = pairs = 0
        for name, (asked, lengths, cache, seats) in workloads(lab.quick).items():
            times: list[tuple[float, float]] = []
            for policy in ("fcfs", "lpm", "batchllm"):
                real: list[tuple[float, int, int]] = []
                for _ in lab.seeds:
                    real.append(run_engine(loaded, asked, lengths, policy, cache, seats))
                seconds = median(r[0] for r in real)
                _, computed, capacity = real[0]
                simulated, counted = run_simulator(
                    found.cost, asked, lengths, policy, capacity, seats
                )
                times.append((seconds, simulated))
                rows.append(
                    {
                        "workload": name,
                        "policy": policy,
                        "engine, s": seconds,
                        "least": min(r[0] for r in real),
                        "most": max(r[0] for r in real),
                        "simulated, s": simulated,
                        "time error": simulated / seconds - 1,
                        "computed": computed,
                        "simulated computed": counted,
                        "token error": counted / computed - 1,
                    }
                )
            for i, (a, simulated_a) in enumerate(times):
                for b, simulated_b in times[:i]:
                    if max(a, b) >= 1.1 * min(a, b):
                        pairs += 1
                        ordered += (a < b) == (simulated_a < simulated_b)
    lab.table("the engine and the simulator", rows)
    lab.fact("fit of single steps", {"median error": found.error, "worst": found.worst})
    lab.measured("time", median(abs(row["time error"]) for row in rows))
    lab.measured("worst", max(abs(row["time error"]) for row in rows))
    lab.measured("tokens", max(abs(row["token error"]) for row in rows))
    lab.measured("order", ordered / pairs if pairs else 1.0)
    lab.finish()


if __name__ == "__main__":
    main()
