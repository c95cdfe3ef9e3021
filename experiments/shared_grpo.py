"""GRPO with shared prefixes beside TRL's: the same learning, in less time.

`python -m experiments.shared_grpo`; some minutes on one core. The task is that of
`experiments/_arithmetic.py`, two digits, and every prompt begins with the same worked examples, as
few-shot prompts do. A model of 91 200 parameters that solves about one in five at the start is
trained with reinforcement in four ways, from the same weights, on the same prompts in the same
order: TRL's `GRPOTrainer` as it is; `SharedPrefixGRPOTrainer` with completions by transformers'
`generate`, as TRL has them; the same with completions by the engine; and a control in which
completions do not see what is shared, as if each segment of the packed row were a text of its own.

With `generate` and one seed the first two draw the same tokens as long as their weights agree to
the last bits. Up to the first different token their losses, gradient norms, entropies and rewards
are held to each other step by step; after it they are two runs of the same thing, and only where
they end can be compared. The engine draws other numbers from the first step on.

Seconds are those of whole optimiser steps, medians without the first two; the arms of a seed run
one after the other in one process with one thread, in another order for each seed. Pilots on other
seeds set the rate and showed slow learning, so that "learns" and "control end" ask for 0.05.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from experiments._arithmetic import (
    Problem,
    distinct,
    fresh,
    pretrained,
    right,
    room,
    share,
    solve,
    tokenizer,
)
from experiments._rft_arms import quiet
from experiments.lab import Experiment

DIGITS = 2
TRL, SHARED, ENGINE, CONTROL = (
    "TRL",
    "shared, generate",
    "shared, engine",
    "control: prefix out of sight",
)
ARMS = (TRL, SHARED, ENGINE, CONTROL)
COMPARED = ("loss", "grad_norm", "entropy", "reward")
WARM_UP = 2
RATE = 3e-4


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    steps: int = 100
    prompts: int = 4
    rollouts: int = 8
    examples: int = 20
    test: int = 200
    reading: int = 600


@dataclass
class Run:
    """What one training was: its log, what was drawn and the seconds of each step."""

    log: list[dict[str, float]] = field(default_factory=list)
    drawn: list[list[list[int]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    solved: float = 0.0

    def late_reward(self) -> float:
        """Mean reward of the last quarter."""
        rewards = [entry["reward"] for entry in self.log]
        return fmean(rewards[-max(1, len(rewards) // 4) :])


@contextlib.contextmanager
def out_of_sight() -> Iterator[None]:
    """Within it packed rows are laid out as ever, and no segment is seen from behind it."""
    from foreword.training import _share

    true = _share.pack

    def blind(*args: Any, **kwargs: Any) -> Any:
        packed = true(*args, **kwargs)
        alone = tuple(replace(each, end=each.stop) for each in packed.forest.segments)
        return replace(packed, forest=type(packed.forest)(alone))

    _share.pack = blind
    try:
        yield
    finally:
        _share.pack = true


def train(arm: str, model: Any, rows: Sequence[dict[str, Any]], seed: int, size: Size) -> Run:
    """One training. Mutates the model."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from foreword.training import EngineRollouts, SharedPrefixGRPOTrainer, Sharing

    made = Run()

    def reward(prompts: Any, completions: Any, completion_ids: Any, **others: Any) -> list[Any]:
        made.drawn.append([list(each) for each in completion_ids])
        return right(prompts, completions, **others)

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            made.seconds.append(time.perf_counter() - self.began[0])
            made.processor.append(time.process_time() - self.began[1])

    kind: Any = GRPOTrainer
    extra: dict[str, Any] = {}
    if arm != TRL:
        kind, extra = SharedPrefixGRPOTrainer, {"sharing": Sharing(self_check=arm != CONTROL)}
    if arm == ENGINE:
        extra["rollouts"] = EngineRollouts(kv_memory="64MiB")
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=str(Path(folder) / "out"),
                per_device_train_batch_size=size.prompts * size.rollouts,
                num_generations=size.rollouts,
                max_completion_length=room(DIGITS),
                max_steps=size.steps,
                learning_rate=RATE,
                seed=seed,
                use_cpu=True,
                bf16=False,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_steps=1,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer(),
            callbacks=[Clock()],
            **extra,
        )
        trainer.remove_callback(PrinterCallback)
        with out_of_sight() if arm == CONTROL else contextlib.nullcontext():
            trainer.train()
    made.log = [entry for entry in trainer.state.log_history if "reward" in entry]
    return made


def same_steps(one: Run, other: Run) -> int:
    """Steps before the first in which another token was drawn."""
    pairs = zip(one.drawn, other.drawn, strict=True)
    return next((step for step, (a, b) in enumerate(pairs) if a != b), len(one.drawn))


def furthest(one: Run, other: Run, steps: int) -> float:
    """The greatest difference of any compared number in the first steps."""
    return max(
        abs(a[name] - b[name])
        for a, b in zip(one.log[:steps], other.log[:steps], strict=True)
        for name in COMPARED
    )


def speed(run: Run, processor: bool = False) -> float:
    """Median seconds of a step."""
    return median((run.processor if processor else run.seconds)[WARM_UP:])


def head_of(seed: int, size: Size) -> tuple[str, list[Problem], list[Problem]]:
    """The worked examples, the problems to learn from and those to test on, no two alike."""
    rng, taken = random.Random(f"shared {seed}"), set[Problem]()
    shown, learned, test = (
        distinct(rng, DIGITS, count, taken) for count in (size.examples, 400, size.test)
    )
    return "".join(problem.text for problem in shown), learned, test


def start(seed: int, size: Size) -> Any:
    """A model that has read such problems until it solves a fifth of some behind the examples."""
    head, _, _ = head_of(seed, size)
    asked = distinct(random.Random(f"start {seed}"), DIGITS, 64, set())

    def there(model: Any) -> bool:
        return share(solve(model, asked, samples=4, head=head, seed=seed)) >= 0.2

    model, steps = pretrained(
        seed, (1, DIGITS), steps=size.reading, tokens=len(head) + 32, rows=4, until=there
    )
    print(f"seed {seed}: start after {steps} steps", file=sys.stderr, flush=True)
    return model


def run_seed(seed: int, size: Size) -> tuple[float, dict[str, Run]]:
    """All arms of a seed, and what the start solves."""
    head, learned, test = head_of(seed, size)
    rows = [{"prompt": head + problem.prompt, "answer": problem.answer} for problem in learned]
    base = start(seed, size)
    at_first = share(solve(base, test, samples=4, head=head, seed=seed))
    runs = {}
    turn = seed % len(ARMS)
    for arm in (*ARMS[turn:], *ARMS[:turn]):
        model = fresh(0)
        model.load_state_dict(base.state_dict())
        runs[arm] = train(arm, model, rows, seed, size)
        runs[arm].solved = share(solve(model, test, samples=4, head=head, seed=seed))
        told = f"{speed(runs[arm]):.3f} s a step, solves {runs[arm].solved:.3f}"
        print(f"seed {seed}, {arm}: {told}", file=sys.stderr, flush=True)
    return at_first, runs


def declare(lab: Experiment) -> None:
    what = "largest difference of loss, gradient norm, entropy and reward while tokens agree"
    lab.expect("equal", f"{what}, generate", at_most=1e-3, every=True)
    lab.expect("agree", "steps until the first different token", at_least=5, every=True)
    lab.expect("end", "solved after training: shared with generate minus TRL", between=(-0.1, 0.1))
    lab.expect("end engine", "the same with the engine", between=(-0.1, 0.1))
    lab.expect("learns", "solved after training minus before: TRL", at_least=0.05)
    lab.expect("speed", "seconds of a step, TRL / shared with generate", at_least=1.2)
    lab.expect("speed engine", "seconds of a step, TRL / shared with the engine", at_least=1.5)
    lab.expect("control", "the first step's largest difference, control", at_least=1e-2, every=True)
    lab.expect("control end", "solved after training: control minus TRL", at_most=-0.05)


def main() -> None:
    lab = Experiment(
        "shared_grpo",
        paper="arXiv 2506.05433",
        claim="GRPO with shared prefixes learns as without them, and a step takes less time",
        seeds=range(1, 4),
    )
    declare(lab)
    quiet()
    size = Size(steps=4, test=20, reading=50) if lab.quick else Size()
    lab.fact("size", vars(size))
    done = {seed: run_seed(seed, size) for seed in lab.seeds}
    runs = [each for _, each in done.values()]
    agreed = [same_steps(each[TRL], each[SHARED]) for each in runs]
    lab.measured("agree", agreed)
    pairs = zip(runs, agreed, strict=True)
    lab.measured("equal", [furthest(r[TRL], r[SHARED], steps) for r, steps in pairs if steps])
    lab.measured("control", [furthest(r[TRL], r[CONTROL], 1) for r in runs])
    lab.measured("learns", [r[TRL].solved - first for first, r in done.values()])
    for name, arm in (("end", SHARED), ("end engine", ENGINE), ("control end", CONTROL)):
        lab.measured(name, [r[arm].solved - r[TRL].solved for r in runs])
    for name, arm in (("speed", SHARED), ("speed engine", ENGINE)):
        lab.measured(name, [speed(r[TRL]) / speed(r[arm]) for r in runs])
    lab.table(
        "means over seeds",
        [
            {
                "arm": arm,
                "solved before": fmean(first for first, _ in done.values()),
                "solved after": fmean(r[arm].solved for r in runs),
                "reward, last quarter": fmean(r[arm].late_reward() for r in runs),
                "seconds a step": fmean(speed(r[arm]) for r in runs),
                "processor seconds": fmean(speed(r[arm], True) for r in runs),
            }
            for arm in ARMS
        ],
    )
    lab.table("each seed", [row for seed in lab.seeds for row in of_seed(seed, *done[seed])])
    lab.table("reward in tenths of the training, means over seeds", curves(runs))
    lab.finish()


def of_seed(seed: int, first: float, runs: dict[str, Run]) -> list[dict[str, Any]]:
    """A seed's arms: how long they drew what TRL drew, where they ended, how fast."""
    return [
        {
            "seed": seed,
            "arm": arm,
            "equal steps": same_steps(runs[TRL], run),
            "solved before": first,
            "solved after": run.solved,
            "seconds a step": speed(run),
            "tokens saved": sum(entry.get("sharing/tokens_saved", 0.0) for entry in run.log),
        }
        for arm, run in runs.items()
    ]


def curves(runs: Sequence[dict[str, Run]]) -> list[dict[str, Any]]:
    """Learning curves: mean rewards of ten parts."""
    made = []
    for arm in ARMS:
        row: dict[str, Any] = {"arm": arm}
        rewards = [[entry["reward"] for entry in each[arm].log] for each in runs]
        count = len(rewards[0])
        for part in range(min(10, count)):
            cut = slice(part * count // 10, max((part + 1) * count // 10, part * count // 10 + 1))
            row[f"{part + 1}"] = fmean(value for each in rewards for value in each[cut])
        made.append(row)
    return made


if __name__ == "__main__":
    main()
