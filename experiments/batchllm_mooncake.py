"""BatchLLM's plan on the Mooncake conversation trace: what it computes, and when it helps nobody.

Claim (BatchLLM, arXiv 2412.03594): prefixes found over all requests, and requests scheduled by
group, reuse what an LRU cache in order of arrival loses. All requests are there at the start and
run one at a time against a cache of a given size, so that the order alone is judged. Then the two
cases in which there is no such order: requests that arrive while others run, and requests that
share nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from experiments.lab import Experiment, data_file
from foreword.scheduling import BatchLLM, Door, find_groups
from foreword.simulation import (
    PRESETS,
    SimulationResult,
    Trace,
    WorkerConfig,
    read_trace,
    replay,
    simulate,
)

CACHES = (262_144, 524_288, 1_048_576, 2_621_440, 5_242_880, 15_728_640, 26_214_400)
BASELINES = ("fcfs", "lpm:window=128", "lpm", "dfs")
PLANS = (
    "batchllm",
    "batchllm:order=tree",
    "batchllm:order=flat",
    "batchllm:order=flat,global_level=false",
    "batchllm:order=flat,method=greedy",
    "batchllm:order=flat,method=greedy,global_level=false",
)
OURS = "batchllm"
SMALL, LARGE = CACHES[1], CACHES[4]
WINDOWS = (10, 60, 300, 1200)
COST = "llama-3-8b-a100"
RATES = (0.25, 1.0)
CROWD = ("fcfs", "lpm", "dfs", *PLANS[:3])
LIVE = ("fcfs", "lpm", "dfs", "batchllm", "batchllm:order=tree")


class Timed(BatchLLM):
    """BatchLLM that notes how long its first call took: the plan, its order and one admission."""

    seconds: float | None = None

    def admit(self, door: Door) -> None:
        start = time.perf_counter()
        super().admit(door)
        if self.seconds is None:
            self.seconds = time.perf_counter() - start


def points(share: float) -> float:
    """A share in per cent, to two places."""
    return round(100 * share, 2)


def planning_seconds(trace: Trace) -> float:
    policy = Timed()
    replay(trace, policy=lambda: policy, cache_tokens=SMALL)
    assert policy.seconds is not None
    return policy.seconds


def by_windows(trace: Trace, policy: str, seconds: float, cache: int) -> float:
    """Hit rate if each window of arrivals is planned by itself, one after the other."""
    windows: dict[int, list[Any]] = {}
    for request in trace.requests:
        windows.setdefault(int(request.arrival // seconds), []).append(request)
    ordered = []
    for requests in windows.values():
        window = Trace("window", trace.unit, tuple(requests)).as_batch()
        order = replay(window, policy=policy, cache_tokens=cache).order
        ordered += [window.requests[index] for index in order]
    whole = Trace("windows", trace.unit, tuple(ordered))
    return replay(whole, policy="fcfs", cache_tokens=cache).hit_rate


def private(trace: Trace) -> Trace:
    """The same lengths with block ids of one's own everywhere."""
    requests = []
    first = 0
    for request in trace.requests:
        path = tuple(range(first, first + len(request.path)))
        first += len(path)
        requests.append(replace(request, path=path))
    return Trace("private", trace.unit, tuple(requests))


def served(trace: Trace, policy: str, cache: int) -> SimulationResult:
    worker = WorkerConfig(cache_tokens=cache)
    return simulate(trace, policy=policy, cost=PRESETS[COST], worker=worker)


def row(name: str, result: SimulationResult) -> dict[str, Any]:
    return {
        "policy": name,
        "hit rate": points(result.hit_rate),
        "makespan, s": result.makespan,
        "share of the optimum": round(result.optimum_share, 3),
        "preemptions": result.preemptions,
    }


def plan_table(trace: Trace) -> dict[tuple[str, bool], int]:
    """Computed tokens that each way of planning guarantees."""
    items = [(request.path, request.tokens) for request in trace.requests]
    return {
        (method, two): find_groups(
            items, method=method, global_level=two, unit=trace.unit
        ).computed_tokens
        for method in ("exact", "greedy")
        for two in (False, True)
    }


def main() -> None:
    lab = Experiment(
        "batchllm_mooncake",
        paper="arXiv 2412.03594",
        claim="prefixes found over all requests reuse what an LRU cache in order of arrival loses",
        seeds=(0, 1, 2),
    )
    lab.expect(
        "gap",
        "points between the ideal hit rate and the plan's, worst cache in which depth-first order "
        "is within 0.5 points; arrivals shuffled by seed",
        at_most=0.5,
    )
    lab.expect("gain", "tokens that fcfs computes over the plan's, 0.5M cache", at_least=1.4)
    lab.expect("planning", "seconds to plan all requests, pure Python", at_most=2.0)
    lab.expect("exact", "tokens of the greedy rule over the exact programme's", at_least=1.0)
    lab.expect("levels", "tokens of one level over those with a global one", at_least=1.0)
    lab.expect(
        "shuffled", "control: hit rate in points of a shuffled order, 0.5M cache", at_most=10.0
    )
    lab.expect("private", "control: points saved where no block is shared", at_most=0.0)
    lab.expect(
        "windows",
        "worst case: share of the plan's gain in hit rate over fcfs that is left when each 10 s of "
        "arrivals are planned alone, 0.5M cache",
        at_most=0.5,
    )
    lab.expect(
        "crowd", "makespan of fcfs over the plan's, 256 seats, all there at the start", at_least=1.2
    )
    lab.expect(
        "live",
        "worst case: P99 time to first token over longest prefix match's, requests arriving as "
        "traced, faster than they can be served",
        at_least=1.0,
    )
    lab.expect(
        "live hits", "worst case: points of hit rate behind longest prefix match's", at_least=0.0
    )
    trace = read_trace(data_file("traces/mooncake_conversation.jsonl"))
    if lab.quick:
        trace = trace.head(1500)
    batch = trace.as_batch()
    ideal = trace.ideal_hit_rate
    lab.fact("requests", len(trace))
    lab.fact("prompt tokens", trace.prompt_tokens)
    lab.fact("ideal hit rate, points", points(ideal))
    lab.fact("longest prompt, tokens", max(request.tokens for request in trace.requests))

    rates: dict[tuple[str, int], float] = {}
    for cache in CACHES:
        for name in (*BASELINES, *PLANS):
            rates[name, cache] = replay(batch, policy=name, cache_tokens=cache).hit_rate
    lab.table(
        "hit rate in points of prompt tokens, one request at a time, by cache size in tokens",
        [
            {"policy": name, **{f"{cache:,}": points(rates[name, cache]) for cache in CACHES}}
            for name in (*BASELINES, *PLANS)
        ]
        + [{"policy": "ideal", **{f"{cache:,}": points(ideal) for cache in CACHES}}],
    )
    planned = plan_table(trace)
    lab.table(
        "what the plan alone guarantees",
        [
            {
                "method": method,
                "levels": 2 if two else 1,
                "computed tokens": tokens,
                "points saved": points(1 - tokens / trace.prompt_tokens),
            }
            for (method, two), tokens in planned.items()
        ],
    )
    lab.measured("exact", [planned["greedy", two] / planned["exact", two] for two in (False, True)])
    lab.measured("levels", [planned[m, False] / planned[m, True] for m in ("exact", "greedy")])
    lab.measured("gain", (1 - rates["fcfs", SMALL]) / (1 - rates[OURS, SMALL]))

    good = [cache for cache in CACHES if ideal - rates["dfs", cache] <= 0.005]
    gaps, shuffles, seconds = [], [], []
    for seed in lab.seeds:
        mixed = batch.shuffled(seed)
        found = [replay(mixed, policy=OURS, cache_tokens=cache).hit_rate for cache in good]
        gaps.append(100 * (ideal - min(found)))
        shuffles.append(100 * replay(mixed, policy="fcfs", cache_tokens=SMALL).hit_rate)
        seconds.append(planning_seconds(mixed))
    lab.fact("caches in which depth-first order is within 0.5 points", good)
    lab.measured("gap", gaps)
    lab.measured("shuffled", shuffles)
    lab.measured("planning", seconds)
    alone = private(batch)
    lab.measured("private", 100 * replay(alone, policy=OURS, cache_tokens=SMALL).hit_rate)

    windowed = []
    left = 0.0
    for cache in (SMALL, LARGE):
        low, high = rates["fcfs", cache], rates[OURS, cache]
        hits = {window: by_windows(trace, OURS, window, cache) for window in WINDOWS}
        windowed.append(
            {
                "cache": cache,
                "fcfs": points(low),
                **{f"{window} s": points(hits[window]) for window in WINDOWS},
                "all at once": points(high),
            }
        )
        if cache == SMALL:
            left = (hits[WINDOWS[0]] - low) / (high - low)
    lab.table("hit rate in points when only a window of arrivals is known", windowed)
    lab.measured("windows", left)

    lab.fact("cost model", {COST: PRESETS[COST].to_dict()})
    crowd = {name: served(batch, name, SMALL) for name in CROWD}
    lab.table(
        f"simulated, all there at the start, {SMALL:,} tokens of cache, 256 seats",
        [row(name, result) for name, result in crowd.items()],
    )
    lab.measured("crowd", crowd["fcfs"].makespan / crowd[OURS].makespan)

    for rate in RATES:
        asked = trace.at_rate(rate)
        live = {name: served(asked, name, LARGE) for name in LIVE}
        lab.table(
            f"simulated, arriving {rate:g} times as fast as traced, {LARGE:,} tokens of cache",
            [
                {
                    **row(name, result),
                    "first token p50, s": result.ttft.p50,
                    "p99, s": result.ttft.p99,
                }
                for name, result in live.items()
            ],
        )
        if rate == RATES[-1]:
            lab.measured("live", live[OURS].ttft.p99 / live["lpm"].ttft.p99)
            lab.measured("live hits", 100 * (live["lpm"].hit_rate - live[OURS].hit_rate))
    lab.finish()


if __name__ == "__main__":
    main()
