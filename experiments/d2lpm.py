"""D²LPM against round robin, power of two, prefix affinity and VTC, on simulated workers.

`python -m experiments.d2lpm`; some minutes on one core. Four clients of a kind, one of which sends
more requests (S1) or longer prefixes (S2), on 2, 4 and 8 workers with the same load for each; and
the construction of the paper's Theorem A.5, one client with a long prefix against one that shares
nothing. What runs on the workers stands behind the plus sign.

Prefix affinity is SGLang's rule, not Preble, which the paper compares with. Both it and D²LPM are
run at two settings and judged at the better one. D²LPM loses throughput wherever a request costs
more than its quantum: its questions about long documents are spread over the workers, and each
computes the document. That is its worst case, and the sweep of quanta shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from experiments._clients import GREEDY, KINDS, geometric_mean, misbehaving, modest, waits
from experiments.lab import Experiment
from foreword.scheduling import dlpm_bound
from foreword.simulation import (
    PRESETS,
    SharedPrompt,
    SimulationResult,
    Trace,
    WorkerConfig,
    simulate,
    synthesize,
)

QUANTUM = 4000
LOCAL = f"dlpm:quantum={QUANTUM}"
OURS = (("d2lpm", LOCAL), ("d2lpm:quantum=40000", LOCAL))
ROUND_ROBIN = ("round-robin", "lpm")
POWER = ("power-of-two", "lpm")
AFFINITY = (("prefix-affinity", "lpm"), ("prefix-affinity:load_slack=8", "lpm"))
VTC = ("round-robin:per_tenant=true", "vtc")
AFFINE_FAIR = ("prefix-affinity", LOCAL)
ALL = (*OURS, ROUND_ROBIN, POWER, *AFFINITY, VTC, AFFINE_FAIR)
FEW = (OURS[0], ROUND_ROBIN, AFFINITY[0], VTC)
SWEEP = (2000, 5000, 10_000, 20_000, 40_000, 160_000, math.inf)

LOADS = {
    # The modest ask for more than their share, so Jain's index compares what they get.
    "trees S1": 1.0,
    "trees S2": 1.0,
    "judge S1": 0.4,
    "judge S2": 0.6,
    "documents S1": 1.0,
    "documents S2": 1.0,
    "chat S1": 0.5,
}
SECONDS = 20.0
COST = PRESETS["llama-3-8b-a100"]
WORKER = WorkerConfig(120_000, seats=32)
SMALL = WorkerConfig(24_000, seats=32)
STICKY = "sticky against spread"

Way = tuple[str, str]


def load(name: str, workers: int, seed: int, seconds: float) -> Trace:
    if name != STICKY:
        kind, _, how = name.partition(" ")
        return misbehaving(kind, how, workers=workers, seconds=seconds, seed=seed, load=LOADS[name])
    sticky = SharedPrompt(
        tenant="sticky", programs=round(40 * workers * seconds), rate=40.0 * workers
    )
    spread = SharedPrompt(  # a prompt of one token shares no block
        tenant="spread",
        programs=round(25 * workers * seconds),
        rate=25.0 * workers,
        prompt=1,
        question=1000,
    )
    return synthesize(name, [sticky, spread], seed=seed)


def main() -> None:
    lab = Experiment(
        "d2lpm",
        paper="arXiv 2501.14312",
        claim="D2LPM keeps locality and fairness over several workers.",
        seeds=(0, 1, 2),
    )
    expect(lab)
    seconds = SECONDS / 2 if lab.quick else SECONDS

    @cache
    def loaded(name: str, workers: int, seed: int) -> Trace:
        return load(name, workers, seed, seconds)

    @cache
    def run(name: str, way: Way, workers: int = 4, seed: int = 0) -> SimulationResult:
        return simulate(
            loaded(name, workers, seed),
            router=way[0],
            policy=way[1],
            workers=workers,
            cost=COST,
            worker=SMALL if name == STICKY else WORKER,
            seed=seed,
            until=seconds,
        )

    def row(name: str, way: Way, workers: int = 4) -> dict[str, Any]:
        result = run(name, way, workers)
        good = modest(result) if GREEDY in result.tenants else list(result.tenants)
        wait = waits(result, good, seconds)
        return {
            "workload": name,
            "workers": workers,
            "router + policy": " + ".join(way),
            "tokens/s": result.tokens_per_second,
            "hit rate": round(result.hit_rate, 3),
            "ideal": round(result.ideal_hit_rate, 3),
            "Jain": round(result.jain, 3),
            "gap": result.service_gap,
            "finished": result.finished,
            "modest P50 s": round(wait.p50, 2),
            "modest P99 s": round(wait.p99, 2),
        }

    for name in LOADS:
        lab.table(name, [row(name, way) for way in ALL])
    for name in ("trees S1", "judge S1", "documents S1"):
        for workers in (2, 8):
            rows = [row(name, way, workers) for way in FEW]
            lab.table(f"{name}, {workers} workers", rows)
    sweep = [(f"d2lpm:quantum={quantum}", LOCAL) for quantum in SWEEP]
    for name in ("trees S1", "documents S1"):
        lab.table(f"quanta: {name}", [row(name, way) for way in sweep])
    infinite = ("d2lpm:quantum=inf", LOCAL)
    lab.table(STICKY, [row(STICKY, way) for way in (*OURS, infinite, AFFINE_FAIR, VTC)])

    for seed in lab.seeds:

        def rate(name: str, *ways: Way, seed: int = seed) -> float:
            return max(run(name, way, 4, seed).tokens_per_second for way in ways)

        def p99(name: str, way: Way, seed: int = seed) -> float:
            result = run(name, way, 4, seed)
            return waits(result, modest(result), seconds).p99

        def faster(than: tuple[Way, ...], ours: tuple[Way, ...]) -> Iterator[float]:
            return (rate(name, *ours) / rate(name, *than) for name in LOADS)

        def sooner(than: Way) -> Iterator[float]:
            return (p99(name, than) / p99(name, OURS[0]) for name in LOADS)

        ours = OURS[:1]
        lab.measured("vtc", geometric_mean(faster((VTC,), ours)))
        lab.measured("round-robin", geometric_mean(faster((ROUND_ROBIN,), ours)))
        lab.measured("power-of-two", geometric_mean(faster((POWER,), ours)))
        lab.measured("affinity", geometric_mean(faster(AFFINITY, OURS)))
        lab.measured("jain", min(run(name, OURS[0], 4, seed).jain for name in LOADS))
        for label, way in (("round-robin", ROUND_ROBIN), ("affinity", AFFINITY[0])):
            lost = [run(n, OURS[0], 4, seed).jain - run(n, way, 4, seed).jain for n in S1]
            lab.measured(f"jain-{label}", sum(lost) / len(lost))
            lab.measured(f"p99-{label}", geometric_mean(sooner(way)))
        trace = loaded(STICKY, 4, seed)
        most = min(SMALL.cache_tokens, SMALL.seats * trace.largest_output)
        bound = 4 * dlpm_bound(QUANTUM, max(r.tokens for r in trace.requests), most)
        lab.measured("bound", run(STICKY, OURS[0], 4, seed).service_gap / bound)
        lab.measured("control", run(STICKY, infinite, 4, seed).service_gap / bound)
        lab.measured("control-affinity", run(STICKY, AFFINE_FAIR, 4, seed).service_gap / bound)
        lab.measured("documents", rate("documents S1", OURS[0]) / rate("documents S1", *AFFINITY))
    fell = {
        way: run("trees S1", way, 2).hit_rate - run("trees S1", way, 8).hit_rate
        for way in (ROUND_ROBIN, OURS[0])
    }
    lab.measured("spread-thin", fell[ROUND_ROBIN])
    lab.measured("not-thin", fell[OURS[0]])
    lab.finish()


S1 = tuple(f"{kind} S1" for kind in KINDS)


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    mean = "4 workers, geometric mean over workloads"
    lab.expect("vtc", f"throughput of D2LPM / VTC ({mean})", at_least=1.3)
    lab.expect("round-robin", f"throughput of D2LPM / round robin + LPM ({mean})", at_least=1.1)
    lab.expect("power-of-two", f"throughput of D2LPM / power of two + LPM ({mean})", at_least=1.1)
    lab.expect("affinity", f"throughput of D2LPM / prefix affinity + LPM, both tuned ({mean})",
               at_least=0.9)  # fmt: skip
    lab.expect("jain", "smallest Jain index of D2LPM, 4 workers", at_least=0.78)
    lab.expect("jain-round-robin", "Jain index over round robin + LPM, mean of S1", at_least=0.2)
    lab.expect("jain-affinity", "Jain index over prefix affinity + LPM, mean of S1", at_least=0.15)
    lab.expect("p99-round-robin", f"P99 of modest clients, round robin + LPM / D2LPM ({mean})",
               at_least=1.2)  # fmt: skip
    lab.expect("p99-affinity", f"P99 of modest clients, prefix affinity + LPM / D2LPM ({mean})",
               at_least=1.2)  # fmt: skip
    lab.expect("bound", "sticky against spread: gap / 2 W (U + Q)", at_most=1)
    lab.expect("control", "the same with an infinite quantum at the router", at_least=1)
    lab.expect("control-affinity", "the same with prefix affinity + DLPM", at_least=1)
    lab.expect("documents", "documents S1: throughput of D2LPM at 10000 / prefix affinity (worst)",
               at_most=1)  # fmt: skip
    lab.expect("spread-thin", "trees S1: hit rate that round robin loses from 2 to 8 workers",
               at_least=0.1)  # fmt: skip
    lab.expect("not-thin", "trees S1: hit rate that D2LPM loses from 2 to 8 workers", at_most=0.1)


if __name__ == "__main__":
    main()
