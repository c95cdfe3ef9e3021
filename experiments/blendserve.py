"""BlendServe (arXiv 2411.16102) in the simulator: does blending beat depth-first order?

Run: python -m experiments.blendserve

The mixes are synthetic: `foreword.simulation.blend_mix` draws lengths, by the paper's recipe, from
the distributions that its kinds state. Here answers are four times as short as those, and the
machine is Llama-2-7B on an A100, whose keys and values are four times as large as Llama-3-8B's: so
densities are alike, and a run of a few thousand requests lasts for many generations of long answers
and not for two. Every policy runs with the step size that serves it best on the first seed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from experiments.lab import Experiment
from foreword.simulation import (
    KINDS,
    PRESETS,
    CostModel,
    RequestKind,
    SimulationResult,
    Trace,
    WorkerConfig,
    blend_mix,
    draw_mix,
    optimum_seconds,
    simulate,
)

COST = PRESETS["llama-2-7b-a100"]
CACHE = 114_688  # tokens: 60 GB of keys and values, 524,288 bytes each
SEATS = 256
STEPS = (512, 640)
DENSITIES = (0.9, 1.1, 1.3)
SHARINGS = (0.05, 0.35)
BASELINES = ("dfs", "fcfs", "batchllm")  # fcfs runs the mix as it lies: shuffled
SHORTER = {
    **KINDS,
    "video": replace(KINDS["video"], output=1024),
    "api": replace(KINDS["api"], output=10),
}
TANGLED = RequestKind(prompt=700, prompt_spread=0.6, output=120, output_spread=1.5)


def main() -> None:
    lab = Experiment(
        "blendserve",
        paper="arXiv 2411.16102",
        claim="taking requests from the dense and the thin end at once keeps computing and "
        "reading overlapped and prefixes shared: up to 1.44x depth-first order, 86 % of what is "
        "practically possible",
        seeds=(0, 1),
    )
    declare(lab)
    requests = 2000 if lab.quick else 8000
    runs = Runs()
    grid(lab, runs, requests)
    lengths(lab, runs, requests)
    imperfect(lab, runs, requests)
    shared(lab, runs, requests)
    alike(lab, runs, requests // 2)
    tangled(lab, runs, requests // 2)
    if not lab.quick:
        as_published(lab, runs)
    lab.fact("step sizes", runs.sizes)
    lab.fact("machine", {"cost": COST.to_dict(), "cache_tokens": CACHE, "seats": SEATS})
    lab.finish()


def declare(lab: Experiment) -> None:
    lab.expect(
        "speed-up", "tokens per second over depth-first order, median of the mixes", at_least=1.2
    )
    lab.expect("optimum", "share of the practical optimum, median of the mixes", at_least=0.86)
    lab.expect(
        "sharing", "share of the saved prompt tokens kept, median of the mixes", at_least=0.97
    )
    lab.expect("sampling", "1 % sampled over all lengths known, median of the mixes", at_least=0.95)
    lab.expect(
        "shuffled", "over a shuffled order where 35 % is shared (the paper: 1.36)", at_least=1.2
    )
    lab.expect("imperfect speed-up", "over depth-first order, overlap 0.8", at_least=1.2)
    lab.expect("imperfect optimum", "share of the practical optimum, overlap 0.8", at_least=0.86)
    lab.expect("shared reads", "over depth-first order, shared prefixes read once", at_least=1.2)
    lab.expect(
        "control",
        "over depth-first order where all requests are alike (nothing to gain)",
        between=(0.9, 1.05),
    )
    lab.expect("worst case", "over depth-first order where nothing tells how long answers are",
               at_most=1.0)  # fmt: skip


class Runs:
    """Simulations, each policy with the step size that served it best on the first seed."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def best(self, trace: Trace, policy: str, **options: Any) -> SimulationResult:
        key = f"{trace.name}, {policy}, {options}" if options else f"{trace.name}, {policy}"
        if policy == "oracle":  # the same policy, told more
            key = key.replace("oracle", "blendserve")
        if key in self.sizes:
            return run(trace, policy, self.sizes[key], **options)
        found = {size: run(trace, policy, size, **options) for size in STEPS}
        self.sizes[key] = min(STEPS, key=lambda size: found[size].makespan)
        return found[self.sizes[key]]


def run(
    trace: Trace,
    policy: str,
    step_tokens: int,
    *,
    cost: CostModel = COST,
    cache: int = CACHE,
    shared_reads: bool = False,
) -> SimulationResult:
    name = policy
    if policy == "oracle":  # knows every length, as if all had been sampled
        told = tuple(replace(r, max_output=r.output) for r in trace.requests)
        trace, name = replace(trace, requests=told), "blendserve:sample=0,guess=1"
    if name.startswith("blendserve"):
        name += ":" if ":" not in name else ","
        name += f"compute_per_token={cost.compute_per_token},"
        name += f"memory_per_kv_token={cost.memory_per_kv_token}"
    config = WorkerConfig(cache, seats=SEATS, step_tokens=step_tokens, shared_reads=shared_reads)
    result = simulate(trace, policy=name, cost=cost, worker=config)
    print(f"  {trace.name}, {policy}, {step_tokens}: {result.makespan:.1f} s", file=sys.stderr)
    return result


def practical_optimum(trace: Trace, cost: CostModel, cache: int = CACHE) -> float:
    """Seconds of all computing and all reading, overlapped as far as the machine can.

    Weights are read in every step, and there are at least as many steps as full caches to read.
    """
    config = WorkerConfig(cache, seats=SEATS, step_tokens=10**9, shared_reads=False)
    steps = max(max(r.output for r in trace.requests), -(-trace.output_tokens // SEATS))
    reads = sum(r.tokens * (r.output - 1) + (r.output - 1) * r.output / 2 for r in trace.requests)
    more = max(1.0, reads / cache / steps)
    return optimum_seconds(
        trace, replace(cost, memory_per_step=cost.memory_per_step * more), config
    )


def mixed(density: float, sharing: float, requests: int, seed: int) -> Trace:
    return blend_mix(
        density=density, sharing=sharing, requests=requests, seed=seed, cost=COST, kinds=SHORTER
    )


def one_kind(name: str, kind: RequestKind, requests: int, seed: int) -> Trace:
    return draw_mix({name: requests}, seed=seed, kinds={name: kind}, name=name)


def kept(result: SimulationResult) -> float:
    return result.hit_rate / result.ideal_hit_rate


def grid(lab: Experiment, runs: Runs, requests: int) -> None:
    """Densities x sharings x seeds."""
    rows: list[dict[str, Any]] = []
    gathered: dict[str, list[float]] = {}
    for seed in lab.seeds:
        here: dict[str, list[float]] = {}
        for density in DENSITIES:
            for sharing in SHARINGS:
                trace = mixed(density, sharing, requests, seed)
                names = (*BASELINES, "blendserve", "oracle")
                found = {name: runs.best(trace, name) for name in names}
                ours = found["blendserve"]
                best = practical_optimum(trace, COST)
                speed = {name: each.makespan / ours.makespan for name, each in found.items()}
                here.setdefault("speed-up", []).append(speed["dfs"])
                here.setdefault("optimum", []).append(best / ours.makespan)
                here.setdefault("sharing", []).append(kept(ours))
                here.setdefault("sampling", []).append(speed["oracle"])
                if sharing == max(SHARINGS):
                    here.setdefault("shuffled", []).append(speed["fcfs"])
                rows.append({
                    "density": density, "sharing": sharing, "seed": seed,
                    "seconds": ours.makespan, "of optimum": best / ours.makespan,
                    "sharing kept": kept(ours), "preemptions": ours.preemptions,
                    **{f"over {name}": speed[name] for name in (*BASELINES, "oracle")},
                    "dfs of optimum": best / found["dfs"].makespan,
                })  # fmt: skip
        for name, values in here.items():
            gathered.setdefault(name, []).append(median(values))
    for name, values in gathered.items():
        lab.measured(name, values)
    lab.table("mixes (seconds to finish, ratios of throughput)", rows)


def pair(
    lab: Experiment,
    runs: Runs,
    title: str,
    make: Callable[[int, int], Trace],
    requests: int,
    **options: Any,
) -> dict[str, list[float]]:
    """Depth-first and shuffled order against BlendServe, on one mix per seed."""
    rows = []
    out: dict[str, list[float]] = {"speed-up": [], "optimum": []}
    for seed in lab.seeds:
        trace = make(requests, seed)
        names = ("dfs", "fcfs", "blendserve")
        found = {name: runs.best(trace, name, **options) for name in names}
        ours = found["blendserve"].makespan
        best = practical_optimum(trace, options.get("cost", COST))
        out["speed-up"].append(found["dfs"].makespan / ours)
        out["optimum"].append(best / ours)
        rows.append({
            "seed": seed, "dfs": found["dfs"].makespan, "fcfs": found["fcfs"].makespan,
            "blendserve": ours, "over dfs": found["dfs"].makespan / ours,
            "over fcfs": found["fcfs"].makespan / ours,
            "of optimum": None if options.get("shared_reads") else best / ours,
            "preemptions": found["blendserve"].preemptions,
        })  # fmt: skip
    lab.table(f"{title} (seconds)", rows)
    return out


def middle(requests: int, seed: int) -> Trace:
    return mixed(1.1, 0.35, requests, seed)


def lengths(lab: Experiment, runs: Runs, requests: int) -> None:
    """How much of the optimum a batch reaches that has less time to fill up and to drain."""
    rows = []
    for part in (8, 4, 2, 1):
        trace = middle(requests // part, lab.seeds[0])
        found = {name: runs.best(trace, name) for name in ("dfs", "blendserve")}
        ours = found["blendserve"].makespan
        rows.append({
            "requests": requests // part, "seconds": ours,
            "of optimum": practical_optimum(trace, COST) / ours,
            "over dfs": found["dfs"].makespan / ours, "sharing kept": kept(found["blendserve"]),
        })  # fmt: skip
    lab.table("length of the batch (density 1.1, sharing 0.35)", rows)


def imperfect(lab: Experiment, runs: Runs, requests: int) -> None:
    """A machine where a fifth of the shorter side cannot hide behind the longer one."""
    found = pair(lab, runs, "overlap 0.8", middle, requests, cost=replace(COST, overlap=0.8))
    lab.measured("imperfect speed-up", found["speed-up"])
    lab.measured("imperfect optimum", found["optimum"])


def shared(lab: Experiment, runs: Runs, requests: int) -> None:
    """Shared prefixes are read once per step, as this engine's attention does."""
    found = pair(lab, runs, "shared reads", middle, requests, shared_reads=True)
    lab.measured("shared reads", found["speed-up"])


def alike(lab: Experiment, runs: Runs, requests: int) -> None:
    """The control: one kind of request, so there is nothing to blend."""

    def make(requests: int, seed: int) -> Trace:
        return one_kind("api", SHORTER["api"], requests, seed)

    lab.measured("control", pair(lab, runs, "all alike", make, requests)["speed-up"])


def tangled(lab: Experiment, runs: Runs, requests: int) -> None:
    """The worst case: answers of every length under one prefix, which no sample foretells."""

    def make(requests: int, seed: int) -> Trace:
        return one_kind("tangled", TANGLED, requests, seed)

    found = pair(lab, runs, "lengths that nothing tells", make, requests)
    lab.measured("worst case", found["speed-up"])


def as_published(lab: Experiment, runs: Runs) -> None:
    """Llama-3-8B with the longer answers: the paper's model, and few generations of them."""
    cost = PRESETS["llama-3-8b-a100"]
    cache = 4 * CACHE
    trace = blend_mix(density=1.1, sharing=0.35, requests=6000, cost=cost)
    rows = []
    for name in ("dfs", "fcfs", "blendserve"):
        result = run(trace, name, 640, cost=cost, cache=cache)
        rows.append({
            "policy": name, "seconds": result.makespan,
            "of optimum": practical_optimum(trace, cost, cache) / result.makespan,
            "sharing kept": kept(result), "preemptions": result.preemptions,
        })  # fmt: skip
    lab.table("Llama-3-8B, answers of 4096 (seconds)", rows)


if __name__ == "__main__":
    main()
