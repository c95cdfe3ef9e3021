"""The arms of `experiments/prefix_rft.py`: what each trains, and one job from start to verdict.

Every arm starts from the same weights and takes `Size.steps` optimiser steps of `Size.prompts`
problems. An arm of reinforcement draws `Size.rollouts` answers to each, in the same order of
problems for the same seed; a supervised step reads the demonstrations of as many problems.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments._arithmetic import (
    MARK,
    Problem,
    any_of,
    distinct,
    fresh,
    pretrained,
    right,
    room,
    share,
    solve,
    tokenizer,
)

DIGITS = 3
SAMPLES = 8
"""Answers per problem of which one has to be right in pass@k, and rollouts of a group."""


@dataclass(frozen=True)
class Size:
    """How much of everything: the whole run, or a try."""

    steps: int = 150
    prompts: int = 16
    rollouts: int = SAMPLES
    demonstrations: int = 200
    dev: int = 400
    test: int = 400
    longer: int = 200


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        supervised: share of the steps that are supervised, all of them first.
        lr: rate of the steps of reinforcement; 0 for none of them.
        sft_lr: rate of the supervised ones.
        options: settings of `PrefixRFTConfig`.
        others: every problem has the demonstration of another one.
    """

    supervised: float = 0.0
    lr: float = 0.0
    sft_lr: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    others: bool = False


@dataclass(frozen=True)
class Job:
    """One training and what is measured after it."""

    name: str
    arm: Arm
    seed: int
    start: str
    size: Size
    dev: bool


@dataclass(frozen=True)
class Found:
    """What a job came to: shares of problems solved, and the rewards of training in fifths."""

    greedy: float
    sampled: float
    passed: float
    longer: float
    on_policy: tuple[float, ...]
    hybrid: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Problems:
    """The problems of a seed, no two alike. Those to choose by differ from those to test on."""

    demonstrations: list[Problem]
    dev: list[Problem]
    test: list[Problem]
    longer: list[Problem]


def problems(seed: int, size: Size) -> Problems:
    rng, taken = random.Random(f"problems {seed}"), set[Problem]()
    counts = (size.demonstrations, size.dev, size.test)
    learned, dev, test = (distinct(rng, DIGITS, count, taken) for count in counts)
    return Problems(learned, dev, test, distinct(rng, DIGITS + 1, size.longer, taken))


def write_start(job: tuple[int, Sequence[int], float, int, str]) -> tuple[int, float]:
    """Pre-train a seed's starting point and save it: what was asked for, to steps and pass rate.

    It stops as soon as `least` of 64 problems, eight answers each, are right, and is measured on
    other problems; with `least` 0 it takes all of its steps.
    """
    seed, lengths, least, steps, path = job
    quiet()
    rng = random.Random(f"start {seed}")
    asked, told = (distinct(rng, DIGITS, 64, set()) for _ in range(2))

    def there(model: Any) -> bool:
        return least > 0 and share(solve(model, asked, samples=SAMPLES, seed=seed)) >= least

    model, taken = pretrained(seed, lengths, steps=steps, until=there)
    torch.save(model.state_dict(), path)
    return taken, share(solve(model, told, samples=SAMPLES, seed=seed))


def run_job(job: Job) -> tuple[Job, Found]:
    """Train and measure. The same whatever ran before and beside it."""
    quiet()
    began = time.perf_counter()
    torch.manual_seed(job.seed)
    model = fresh(0)
    model.load_state_dict(torch.load(job.start))
    own = problems(job.seed, job.size)
    supervised = round(job.arm.supervised * job.size.steps)
    reinforced = job.size.steps - supervised if job.arm.lr else 0
    if supervised:
        learn_demonstrations(model, own.demonstrations, job, supervised)
    log = reinforce(model, own.demonstrations, job, reinforced) if reinforced else []
    judged = own.dev if job.dev else own.test
    drawn = solve(model, judged[: job.size.test // 2], samples=SAMPLES, seed=job.seed)
    found = Found(
        greedy=share(solve(model, judged)),
        sampled=share(drawn),
        passed=any_of(drawn),
        longer=share(solve(model, own.longer)),
        on_policy=fifths(log, "reward/on_policy") or fifths(log, "reward"),
        hybrid=fifths(log, "reward/hybrid"),
        seconds=time.perf_counter() - began,
    )
    return job, found


def reinforce(
    model: Any, learned: Sequence[Problem], job: Job, steps: int
) -> list[dict[str, float]]:
    """Train with the library's trainer; what it logged. Mutates the model."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from foreword.training import PrefixRFTConfig, PrefixRFTTrainer

    shown = [problem.solution for problem in learned]
    if job.arm.others:
        shown = [*shown[1:], shown[0]]
    rows = [
        {"prompt": problem.prompt, "answer": problem.answer, "demonstration": solution}
        for problem, solution in zip(learned, shown, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = common(folder, job, steps) | {
            "per_device_train_batch_size": job.size.prompts * job.size.rollouts,
            "num_generations": job.size.rollouts,
            "max_completion_length": room(DIGITS),
            "learning_rate": job.arm.lr,
            "prefix_stop_at": MARK,
            "prefix_decay_steps": steps,
            **job.arm.options,
        }
        trainer = PrefixRFTTrainer(
            model=model,
            reward_funcs=right,
            args=PrefixRFTConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return list(trainer.state.log_history)


def learn_demonstrations(model: Any, learned: Sequence[Problem], job: Job, steps: int) -> None:
    """Supervised steps by TRL's trainer, on completions alone. Mutates the model."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": problem.prompt, "completion": problem.solution} for problem in learned]
    with tempfile.TemporaryDirectory() as folder:
        settings = common(folder, job, steps) | {
            "per_device_train_batch_size": job.size.prompts,
            "learning_rate": job.arm.sft_lr,
            "completion_only_loss": True,
        }
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def common(folder: str, job: Job, steps: int) -> dict[str, Any]:
    """Settings of every trainer: the schedule, and nothing written or shown."""
    return {
        "output_dir": str(Path(folder) / "out"),
        "max_steps": steps,
        "seed": job.seed,
        "lr_scheduler_type": "linear",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": max(1, job.size.steps // 20),
        "dataloader_pin_memory": False,
    }


def fifths(log: Sequence[Mapping[str, float]], name: str) -> tuple[float, ...]:
    """Means of a logged number over five equal parts of the training; empty if not logged."""
    values = [entry[name] for entry in log if name in entry]
    if len(values) < 5:
        return ()
    cuts = [len(values) * part // 5 for part in range(6)]
    return tuple(fmean(values[a:b]) for a, b in pairwise(cuts))


def quiet() -> None:
    """One thread, and none of what the trainers tell their users."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
