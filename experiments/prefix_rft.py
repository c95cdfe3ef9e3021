"""Prefix-RFT against supervised fine-tuning, reinforcement, both in a row, and both at once.

`python -m experiments.prefix_rft [--workers 2]`; half an hour on two cores. The task is that of
`experiments/_arithmetic.py`: adding numbers of three digits, written out. A model of 91 200
parameters has read solved additions of one and two digits and a few of three, and stops as soon as
one in twenty of its answers to three digits is right, or more. It then has a fixed number of
optimiser steps and 200 problems with demonstrations, and is tested, greedily and without any
prefix, on problems it has not seen. Each seed has its own starting point and problems, common to
all arms.

An arm of reinforcement draws eight answers to each of 16 problems a step, Prefix-RFT as many as
RFT: one of its eight goes on from a demonstration. Supervised steps read the demonstrations of as
many problems and draw nothing, so they are far cheaper; SFT before RFT has the same steps in all,
and fewer answers to learn from. The reward is 1 for the right number after `#`, and no prefix
reaches that mark.

On seed 100 settings are chosen by 400 problems of its own: of four rates for SFT, RFT and
Prefix-RFT; of three splits for SFT before RFT, and of three weights for RFT with a supervised loss
beside it, each with the rate chosen for RFT and with that chosen for Prefix-RFT, which is up to six
trials where the method has four. The ablations of Prefix-RFT and the control have its rate. The
control is given other problems' demonstrations: where those help, it is not what they say about the
problem. From a second start, which has seen no problem of three digits and solves none, some arms
run again as they were tuned on the first.

Seeds 0, 100 and 101 were looked at while the task was made. With a start that solves one in thirty
fine-tuning was ahead of the others tried, by much with 400 demonstrations and by less with 200, so
the start became better and the demonstrations stayed 200. Verdicts are of other seeds.

Differences are between arms of the same seed; intervals are Student's t, 95 %, over seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from experiments._rft_arms import Arm, Found, Job, Size, run_job, write_start
from experiments.lab import Experiment

SEEDS = range(1, 7)
DEV_SEED = 100
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SPLITS = (0.1, 0.25, 0.5)
WEIGHTS = (0.01, 0.1, 1.0)
WARM, COLD = "some", "none"
STARTS: dict[str, tuple[tuple[int, ...], float, int]] = {
    WARM: ((1, 2) * 11 + (3,) * 3, 0.05, 1500),
    COLD: ((1, 2), 0.0, 600),
}
"""What a starting point has read, the pass rate at which it stops, and the most steps."""

SFT, RFT, BOTH, MIXED, PREFIX = (
    "SFT",
    "RFT",
    "SFT, then RFT",
    "RFT + supervised loss",
    "Prefix-RFT",
)
ALL, FROZEN, UNIFORM = (f"Prefix-RFT, {what}" for what in ("all tokens", "frozen", "uniform"))
CONTROL, START = "control: others' demonstrations", "start"
COLD_ARMS = (SFT, RFT, BOTH, PREFIX)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t, two-sided 95 %, by the number of values."""

NO_PREFIX = {"prefix_rollouts": 0}
Given = TypeVar("Given")
Made = TypeVar("Made")


class Crew:
    """Processes of one thread each that work off jobs; results do not depend on their number."""

    def __init__(self, workers: int, folder: str) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self._pool = multiprocessing.get_context("spawn").Pool(workers)
        self._folder = Path(folder)

    def each(self, work: Callable[[Given], Made], jobs: Iterable[Given]) -> list[Made]:
        """Results in the order of the jobs, each told on stderr."""
        made = []
        for result in self._pool.imap(work, list(jobs), chunksize=1):
            made.append(result)
            print(f"{len(made)}: {told(result)}", file=sys.stderr, flush=True)
        return made

    def start(self, kind: str, seed: int) -> str:
        return str(self._folder / f"{kind}-{seed}.pt")

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


def told(result: Any) -> str:
    """What came out of a job, in a line."""
    if not isinstance(result[0], Job):
        return f"a start that solves {result[1]:.3f} after {result[0]} steps"
    job, found = result
    return f"seed {job.seed}, {job.name}: {found.greedy:.3f} greedy, {found.seconds:.0f} s"


def tune(crew: Crew, size: Size) -> tuple[dict[str, Arm], list[dict[str, Any]]]:
    """Every arm as it did best on the seed to choose by, and all trials."""
    trials: list[dict[str, Any]] = []

    def best(tried: dict[str, list[tuple[str, Arm]]]) -> dict[str, Arm]:
        jobs = [
            Job(f"{name}, {setting}", arm, DEV_SEED, crew.start(WARM, DEV_SEED), size, dev=True)
            for name, settings in tried.items()
            for setting, arm in settings
        ]
        found = {job.name: result for job, result in crew.each(run_job, jobs)}
        chosen = {}
        for name, settings in tried.items():
            scores = [found[f"{name}, {setting}"].greedy for setting, _ in settings]
            chosen[name] = settings[scores.index(max(scores))][1]
            trials.extend(
                {"arm": name, "setting": setting, "dev": score, "chosen": arm is chosen[name]}
                for (setting, arm), score in zip(settings, scores, strict=True)
            )
        return chosen

    arms = best(
        {
            SFT: [(f"{lr:g}", Arm(supervised=1.0, sft_lr=lr)) for lr in RATES],
            RFT: [(f"{lr:g}", Arm(lr=lr, options=NO_PREFIX)) for lr in RATES],
            PREFIX: [(f"{lr:g}", Arm(lr=lr)) for lr in RATES],
        }
    )
    sft, rft, prefix = arms[SFT], arms[RFT], arms[PREFIX]
    # What RFT bears from the start says little of what it bears after SFT or beside it.
    rates = sorted({rft.lr, prefix.lr})
    arms |= best(
        {
            BOTH: [
                (
                    f"{split:.0%} SFT, {lr:g}",
                    replace(rft, lr=lr, supervised=split, sft_lr=sft.sft_lr),
                )
                for split in SPLITS
                for lr in rates
            ],
            MIXED: [
                (
                    f"weight {weight:g}, {lr:g}",
                    Arm(lr=lr, options={**NO_PREFIX, "demonstration_loss": weight}),
                )
                for weight in WEIGHTS
                for lr in rates
            ],
        }
    )
    arms |= {
        ALL: replace(prefix, options={"prefix_update": "all"}),
        FROZEN: replace(prefix, options={"prefix_update": "none"}),
        UNIFORM: replace(prefix, options={"prefix_schedule": "uniform"}),
        CONTROL: replace(prefix, others=True),
        START: Arm(),
    }
    return arms, trials


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; 0 for a single value."""
    if len(values) < 2:
        return fmean(values), 0.0
    return fmean(values), T95[len(values)] * stdev(values) / len(values) ** 0.5


def rows(found: dict[str, list[Found]], names: Iterable[str]) -> list[dict[str, Any]]:
    """The arms' results as a table: mean over seeds, and the interval of the first column."""
    made = []
    for name in names:
        mine = found[name]
        mean, half = interval([each.greedy for each in mine])
        made.append(
            {
                "arm": name,
                "greedy": mean,
                "±": half,
                "at temperature 1": fmean(each.sampled for each in mine),
                "pass@8": fmean(each.passed for each in mine),
                "four digits": fmean(each.longer for each in mine),
                "seconds": fmean(each.seconds for each in mine),
            }
        )
    return made


def declare(lab: Experiment) -> None:
    low = "lower end of the interval"
    lab.expect("beyond", f"Prefix-RFT minus the better of SFT and RFT: {low}", at_least=0.0)
    lab.expect("sequential", "SFT, then RFT, minus Prefix-RFT (arXiv 2604.23747)", at_least=0.0)
    lab.expect("mixed", "Prefix-RFT minus RFT with a supervised loss", at_least=0.0)
    lab.expect("entropy", "Prefix-RFT minus the same with all prefix tokens", at_least=0.0)
    lab.expect("frozen", "Prefix-RFT minus the same with no prefix token", at_least=0.0)
    lab.expect("schedule", "Prefix-RFT minus the same with a uniform schedule", at_least=0.0)
    lab.expect("shrinks", "reward with prefix minus without: last fifth minus first", at_most=0.0)
    lab.expect("control", "the control, others' demonstrations, minus RFT", at_most=0.05)
    lab.expect("starves", "from a start that solves none: RFT", at_most=0.01)
    lab.expect("cold", f"from a start that solves none: Prefix-RFT minus RFT: {low}", at_least=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workers", type=int, default=2)
    given, others = parser.parse_known_args()
    lab = Experiment(
        "prefix_rft",
        paper="arXiv 2507.01679",
        claim="one rollout of eight that goes on from a demonstration beats fine-tuning on the "
        "demonstrations and reinforcement without them",
        seeds=SEEDS,
        arguments=others,
    )
    declare(lab)
    size = Size(steps=4, demonstrations=40, dev=20, test=20, longer=10) if lab.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        crew = Crew(given.workers, folder)
        try:
            study(lab, crew, size)
        finally:
            crew.close()
    lab.finish()


def study(lab: Experiment, crew: Crew, size: Size) -> None:
    """Pre-train, tune, train, measure."""
    wanted = [
        (kind, seed)
        for kind in STARTS
        for seed in ((DEV_SEED, *lab.seeds) if kind == WARM else lab.seeds)
    ]
    jobs = [(seed, *STARTS[kind], crew.start(kind, seed)) for kind, seed in wanted]
    if lab.quick:
        jobs = [(seed, lengths, 0.0, 25, path) for seed, lengths, _, _, path in jobs]
    starts = crew.each(write_start, jobs)
    lab.fact(
        "starts",
        [
            {"has read": kind, "seed": seed, "steps": steps, "solves": rate}
            for (kind, seed), (steps, rate) in zip(wanted, starts, strict=True)
        ],
    )
    arms, trials = tune(crew, size)

    def final(kind: str, names: Iterable[str]) -> dict[str, list[Found]]:
        jobs = [
            Job(name, arms[name], seed, crew.start(kind, seed), size, dev=False)
            for seed in lab.seeds
            for name in names
        ]
        found: dict[str, list[Found]] = {}
        for job, result in crew.each(run_job, jobs):
            found.setdefault(job.name, []).append(result)
        return found

    warm, cold = final(WARM, arms), final(COLD, (*COLD_ARMS, START))
    judge(lab, warm, cold)
    lab.table(f"share of {size.test} unseen problems solved", rows(warm, arms))
    lab.table("from a start that solves none", rows(cold, (*COLD_ARMS, START)))
    lab.table("training reward in fifths of the training", rewards(warm))
    lab.table("trials on the seed to choose by", trials)
    lab.fact("size", vars(size))
    lab.fact("values", {name: [vars(each) for each in found] for name, found in warm.items()})


def judge(lab: Experiment, warm: dict[str, list[Found]], cold: dict[str, list[Found]]) -> None:
    def greedy(name: str, found: dict[str, list[Found]] = warm) -> list[float]:
        return [each.greedy for each in found[name]]

    def minus(name: str, other: str, found: dict[str, list[Found]] = warm) -> list[float]:
        return [a - b for a, b in zip(greedy(name, found), greedy(other, found), strict=True)]

    better = max((SFT, RFT), key=lambda name: fmean(greedy(name)))
    lab.fact("the better of SFT and RFT", better)
    differences = {
        "beyond": minus(PREFIX, better),
        "sequential": minus(BOTH, PREFIX),
        "mixed": minus(PREFIX, MIXED),
        "entropy": minus(PREFIX, ALL),
        "frozen": minus(PREFIX, FROZEN),
        "schedule": minus(PREFIX, UNIFORM),
        "control": minus(CONTROL, RFT),
        "cold": minus(PREFIX, RFT, cold),
    }
    for name, values in differences.items():
        mean, half = interval(values)
        lab.measured(name, mean - half if name in ("beyond", "cold") else values)
    lab.measured("starves", greedy(RFT, cold))
    gaps = [
        [h - o for h, o in zip(each.hybrid, each.on_policy, strict=True)] for each in warm[PREFIX]
    ]
    lab.measured("shrinks", [gap[-1] - gap[0] for gap in gaps if gap])
    lab.table(
        "differences between arms of the same seed",
        [
            {"difference": name, "mean": interval(values)[0], "±": interval(values)[1]}
            for name, values in differences.items()
        ],
    )


def rewards(found: dict[str, list[Found]]) -> list[dict[str, Any]]:
    """Rewards of training, split by whether a rollout had a prefix."""
    made = []
    for name, results in found.items():
        for kind in ("on_policy", "hybrid"):
            fifths = [getattr(each, kind) for each in results if getattr(each, kind)]
            if fifths:
                shown = "with prefix" if kind == "hybrid" else "without"
                means = [fmean(values) for values in zip(*fifths, strict=True)]
                made.append(
                    {"arm": name, "rollouts": shown}
                    | {f"{part}": mean for part, mean in enumerate(means, 1)}
                )
    return made


if __name__ == "__main__":
    main()
