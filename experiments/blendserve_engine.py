"""BlendServe on a real engine: does blending pay on this machine?

Claim (BlendServe, arXiv 2411.16102): requests that compute and requests that read, blended in the
same steps, finish sooner than in depth-first order, because the processor and the memory work at
the same time. Whether they do is a property of the machine: the experiment times its costs first,
so the overlap it finds says what to expect. Prompts and lengths are synthetic.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.batchllm_bbh import MODEL
from experiments.lab import Experiment
from foreword import LLM, SamplingParams
from foreword.bench import calibrate, write_random_llama
from foreword.models import load_model
from foreword.scheduling import make_policy
from foreword.simulation import Trace, TraceRequest, WorkerConfig, simulate

TOKEN_BYTES = 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * 4
CACHE = 24_000
SEATS = 32
STEP_TOKENS = 256


def workload(seed: int, quick: bool) -> tuple[list[list[int]], list[int]]:
    """Long prompts with short answers behind a few heads, and short prompts with long answers."""
    rng = random.Random(seed)
    scale = 4 if quick else 1

    def draw(n: int) -> list[int]:
        return rng.choices(range(MODEL.vocab), k=n)

    heads = [draw(600) for _ in range(4)]
    asked = [(rng.choice(heads) + draw(rng.randrange(200, 900)), 4) for _ in range(40 // scale)]
    asked += [(draw(rng.randrange(8, 40)), rng.randrange(150, 450)) for _ in range(60 // scale)]
    rng.shuffle(asked)
    return [prompt for prompt, _ in asked], [length for _, length in asked]


def main() -> None:
    lab = Experiment(
        "blendserve_engine",
        paper="arXiv 2411.16102",
        claim="blending compute-heavy and memory-heavy requests beats depth-first order",
        seeds=(0, 1, 2),
    )
    lab.expect("gain", "time of depth-first order over BlendServe's, on the engine", at_least=1.05)
    lab.expect(
        "predicted", "the same ratio in the simulator over the engine's", between=(0.85, 1.15)
    )
    lab.expect("same", "policies that wrote the same tokens, as a share", at_least=1.0, every=True)
    rows: list[dict[str, Any]] = []
    times: dict[str, list[float]] = {}
    simulated: dict[str, list[float]] = {}
    same: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_random_llama(MODEL, Path(scratch))
        loaded = load_model(scratch, dtype=MODEL.dtype)
        found = calibrate(loaded, repeats=1 if lab.quick else 3)
        cost = found.cost
        lab.fact("calibration", {**cost.to_dict(), "error": found.error})
        lab.fact("threads", torch.get_num_threads())
        blend = {
            "compute_per_token": cost.compute_per_token,
            "memory_per_kv_token": cost.memory_per_kv_token,
        }
        policies: dict[str, dict[str, Any]] = {
            "fcfs": {},
            "dfs": {},
            "batchllm": {},
            "blendserve": blend,
        }
        for seed in lab.seeds:
            asked, lengths = workload(seed, lab.quick)
            params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
            answers = []
            for name, settings in policies.items():
                llm = LLM(
                    loaded,
                    policy=make_policy(name, **settings),
                    max_batch=SEATS,
                    max_step_tokens=STEP_TOKENS,
                    kv_memory=CACHE * TOKEN_BYTES,
                )
                start = time.perf_counter()
                results = llm.generate(asked, params)
                times.setdefault(name, []).append(time.perf_counter() - start)
                answers.append([result.outputs[0].token_ids for result in results])
                requests = tuple(
                    TraceRequest(0.0, tuple(p), len(p), n, max_output=n)
                    for p, n in zip(asked, lengths, strict=True)
                )

                def fresh(name: str = name, settings: dict[str, Any] = settings) -> Any:
                    return make_policy(name, **settings)

                worker = WorkerConfig(llm.engine.capacity, SEATS, STEP_TOKENS)
                result = simulate(Trace("x", 1, requests), policy=fresh, cost=cost, worker=worker)
                simulated.setdefault(name, []).append(result.makespan)
                rows.append(
                    {
                        "policy": name,
                        "seed": seed,
                        "seconds": times[name][-1],
                        "simulated": result.makespan,
                        "computed": llm.stats.computed_prompt_tokens,
                        "steps": llm.stats.steps,
                        "preemptions": llm.stats.preemptions,
                    }
                )
            same.append(sum(a == answers[0] for a in answers) / len(answers))
    lab.table("wall time by policy", rows)
    lab.table(
        "medians",
        [
            {"policy": name, "engine, s": median(times[name]), "simulator, s": median(s)}
            for name, s in simulated.items()
        ],
    )
    gains = [a / b for a, b in zip(times["dfs"], times["blendserve"], strict=True)]
    guesses = [a / b for a, b in zip(simulated["dfs"], simulated["blendserve"], strict=True)]
    lab.measured("gain", gains)
    lab.measured("predicted", [g / r for g, r in zip(guesses, gains, strict=True)])
    lab.measured("same", same)
    lab.finish()


if __name__ == "__main__":
    main()
