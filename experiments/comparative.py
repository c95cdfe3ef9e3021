"""Comparative prefixes against imitation, on a language with a linter and an interpreter.

`python -m experiments.comparative`; some minutes on one core. A small model has learned programs of
`experiments/_mini_language.py`, half of whose choices violate the linter's rules. For each of 64
tasks four programs are drawn; the one with the fewest violations per statement is the better half
of a pair, the one with the most the worse. So the better programs are better, not clean, as real
ones are. Arms, all prefixes of eight positions:

- *LM*: Prefix-Tuning on the better programs, on all of their tokens or the changed ones;
- *two prefixes*: one for each side, told apart by the contrast of SVEN (arXiv 2302.05319) at
  changed tokens, held to the base model elsewhere;
- *rank + LM*, *rank + LM + KL*: the comparative prefix without and with its divergence term;
- *sums*: the same with scores that are not divided by their length;
- *shuffled*: rank + LM + KL on pairs of which a coin has said who is better. It must not work.

Each arm tries the same number of settings on pairs and tasks of their own; the best goes on to five
seeds with other pairs and test tasks. The criterion is violations per statement of programs that
compute the right value, and 3, all there can be, for those that do not. Programs are sampled at
temperature 0.7.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random
from statistics import mean, median
from typing import Any

import torch

from experiments._mini_language import (
    COMMENT,
    END,
    GO,
    KINDS,
    NEWLINE,
    VOCAB,
    Task,
    check,
    program,
    prompt,
    some_task,
    value_of,
)
from experiments._sampling import sample
from experiments._small import pretrain, tiny_llama
from experiments.lab import Experiment
from foreword.prefixes import Prefix, PrefixShape, run
from foreword.prefixes.methods import ComparativePrefix, Example, Loss, Method, PrefixTuning
from foreword.prefixes.methods._comparative import PairBatch
from foreword.prefixes.objectives import IGNORED, contrast, kl_to_base, lm_loss
from foreword.prefixes.training import TrainConfig, train

LENGTH = 8
NEUTRAL = (GO, NEWLINE, COMMENT, END)
"""What prefixes start from. Whole programs would be read as tasks: values are copied from them."""
PAIRS = 64
TEMPERATURE = 0.7
TUNING = 99
"""The seed on which settings are chosen."""


class TwoPrefixes(ComparativePrefix):
    """A prefix per side, as SVEN: the better one is served, the worse one helps it to differ."""

    name = "two-prefixes"

    def __init__(self, shape: PrefixShape, *, contrast: float = 1.0, **settings: Any) -> None:
        super().__init__(shape, rank=0.0, **settings)
        self.contrast = contrast
        self.other = PrefixTuning(shape, length=self.length, init_ids=NEUTRAL)

    def start(self, model: Any, examples: Sequence[Example]) -> None:
        super().start(model, examples)
        self.other.start(model, examples)

    def loss(self, model: Any, batch: Any) -> Loss:
        assert isinstance(batch, PairBatch)
        half = len(batch) // 2
        fronts = (super().rows(model, batch), self.other.rows(model, batch))
        good, bad = (run(model, batch.ids, batch.mask, front).logits for front in fronts)
        own = torch.cat((good[:half], bad[half:]))
        foreign = torch.cat((bad[:half], good[half:]))
        labels = batch.labels.masked_fill(~batch.changed, IGNORED)
        with torch.no_grad():
            base = run(model, batch.ids, batch.mask).logits
        unchanged = (batch.labels != IGNORED) & ~batch.changed
        value = lm_loss(own, labels) + self.contrast * contrast(own, foreign, labels)
        return Loss(value + self.kl * kl_to_base(own, base, unchanged))


@dataclass(frozen=True)
class Score:
    """What the programs of one prefix are like."""

    violations: float
    accuracy: float
    length: float
    read: float
    penalty: float
    kinds: Mapping[str, float]
    comments: float


def score(model: Any, prefix: Prefix | None, tasks: Sequence[Task], seed: int) -> Score:
    written = sample(
        model, [prompt(task) for task in tasks], prefix,
        new=60, stop=END, temperature=TEMPERATURE, seed=seed,
    )  # fmt: skip
    reports = [check(each) for each in written]
    right = [r.value == value_of(task) for r, task in zip(reports, tasks, strict=True)]
    statements = max(1, sum(r.statements for r in reports))
    return Score(
        sum(r.total for r in reports) / statements,
        mean(right),
        mean(map(len, written)),
        mean(r.statements - r.violations["unused"] for r in reports),
        mean(
            r.total / r.statements if good else float(len(KINDS))
            for r, good in zip(reports, right, strict=True)
        ),
        {kind: sum(r.violations[kind] for r in reports) / statements for kind in KINDS},
        sum(r.comments for r in reports) / statements,
    )


def pairs(seed: int, count: int, *, shuffled: bool = False) -> list[Example]:
    """Best and worst of four programs for each task; where they tie another task is drawn."""
    draw, made = Random(seed), []
    while len(made) < count:
        task = some_task(draw)
        drawn = [program(task, draw) for _ in range(4)]
        rates = [(r.total / r.statements, p) for p in drawn for r in (check(p[:-1]),)]
        (low, better), (high, worse) = min(rates), max(rates)
        if low == high:
            continue
        if shuffled and draw.random() < 0.5:
            better, worse = worse, better
        head = prompt(task)
        made.append(Example((*head, *better), len(head), {"rejected": (*head, *worse)}))
    return made


Maker = Callable[[PrefixShape], Method]


def arms() -> dict[str, list[tuple[str, Maker, float]]]:
    """Six settings for each arm: what to make and at which learning rate."""

    def made(kind: type[Method], lrs: Sequence[float], **choices: Sequence[Any]) -> Any:
        settings = []
        for lr, *values in product(lrs, *choices.values()):
            chosen = dict(zip(choices, values, strict=True))
            text = ", ".join(f"{k}={v}" for k, v in {"lr": lr, **chosen}.items())
            settings.append((text, partial(kind, length=LENGTH, init_ids=NEUTRAL, **chosen), lr))
        return settings

    rates = (3e-2, 1e-1, 3e-1)
    compare = partial(made, ComparativePrefix, rates)
    return {
        "LM": compare(rank=(0.0,), kl=(0.0,), tokens=("all", "changed")),
        "two prefixes": made(TwoPrefixes, rates, contrast=(1.0, 4.0)),
        "rank + LM": compare(margin=(0.3, 1.0), kl=(0.0,)),
        "rank + LM + KL": compare(margin=(0.3, 1.0)),
        "sums": compare(margin=(3.0, 10.0), normalised=(False,)),
    }


def main() -> None:
    lab = Experiment(
        "comparative",
        paper="arXiv 2503.09020 (reconstruction)",
        claim="Learning from pairs, with ranking and KL, improves quality beyond imitating the "
        "better half, and function is kept.",
        seeds=(0, 1, 2, 3, 4),
    )
    torch.set_num_threads(1)
    expect(lab)
    steps, tests = (40, 64) if lab.quick else (150, 256)
    model = tiny_llama(VOCAB, layers=2, hidden=64, context=128, spread=0.1)
    loss = pretrain(model, corpus, steps=200 if lab.quick else 600, batch_size=16, lr=5e-3)
    lab.fact("base loss, nats per token", round(loss, 4))
    print(f"base trained, loss {loss:.3f}", file=sys.stderr)
    shape = PrefixShape.of(model)

    def trained(make: Maker, lr: float, examples: Sequence[Example], seed: int) -> Prefix:
        torch.manual_seed(seed)
        method = make(shape)
        train(model, method, examples, TrainConfig(steps=steps, batch_size=8, lr=lr, seed=seed))
        return method.export(model)[""]

    chosen: dict[str, tuple[Maker, float]] = {}
    dev = tasks_of(TUNING, 128)
    for name, settings in arms().items():
        tried = []
        for text, make, lr in settings[: 2 if lab.quick else None]:
            prefix = trained(make, lr, pairs(TUNING, PAIRS), TUNING)
            tried.append((score(model, prefix, dev, TUNING).penalty, text, make, lr))
            print(f"{name}: {text}: {tried[-1][0]:.3f}", file=sys.stderr)
        best = min(tried, key=lambda each: each[0])
        chosen[name] = best[2:]
        lab.fact(f"chosen for {name}", best[1])
    chosen["shuffled"] = chosen["rank + LM + KL"]

    scores: dict[str, list[Score]] = {name: [] for name in ("base", *chosen)}
    for seed in lab.seeds:
        tasks = tasks_of(1000 + seed, tests)
        scores["base"].append(score(model, None, tasks, seed))
        for name, (make, lr) in chosen.items():
            given = pairs(seed, PAIRS, shuffled=name == "shuffled")
            prefix = trained(make, lr, given, seed)
            scores[name].append(score(model, prefix, tasks, seed))
            print(f"seed {seed}, {name}: {scores[name][-1]}", file=sys.stderr)
    report(lab, scores)
    lab.finish()


def corpus(count: int) -> list[Example]:
    made = []
    for _ in range(count):
        task = some_task(_CORPUS)
        made.append(Example((*prompt(task), *program(task, _CORPUS)), len(task) + 2))
    return made


_CORPUS = Random(12345)


def tasks_of(seed: int, count: int) -> list[Task]:
    draw = Random(seed + 7_000_000)
    return [some_task(draw) for _ in range(count)]


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    ratio = "violations per statement"
    lab.expect("gain", f"{ratio}: rank + LM + KL / LM", at_most=0.9)
    lab.expect("lm", f"{ratio}: LM / base", at_most=0.9)
    lab.expect("kept", "accuracy that rank + LM + KL loses against the base", at_most=0.01)
    lab.expect("lost", "accuracy that rank + LM without KL loses against the base", at_least=0.01)
    lab.expect("sven", f"{ratio}: rank + LM + KL / two prefixes", at_most=1)
    lab.expect("length", "assignments per program that are read: rank + LM + KL / base",
               between=(0.95, 1.05))  # fmt: skip
    lab.expect("sums", "length of programs: sums / rank + LM + KL", at_most=1)
    lab.expect("control", f"{ratio}: shuffled pairs / base (must not improve)", at_least=0.9)


def report(lab: Experiment, scores: Mapping[str, Sequence[Score]]) -> None:
    def each(name: str, field: str) -> list[float]:
        return [getattr(s, field) for s in scores[name]]

    def over(first: str, second: str, field: str) -> list[float]:
        pairs_of = zip(each(first, field), each(second, field), strict=True)
        return [a / max(b, 1e-9) for a, b in pairs_of]

    def lost(name: str) -> list[float]:
        pairs_of = zip(each("base", "accuracy"), each(name, "accuracy"), strict=True)
        return [base - ours for base, ours in pairs_of]

    ours = "rank + LM + KL"
    lab.table(
        f"Programs, medians of {len(lab.seeds)} seeds",
        [
            {
                "arm": name,
                "violations": median(each(name, "violations")),
                **{k: round(median(s.kinds[k] for s in many), 3) for k in KINDS},
                "accuracy": median(each(name, "accuracy")),
                "length": median(each(name, "length")),
                "read": median(each(name, "read")),
                "comments": round(median(each(name, "comments")), 3),
                "criterion": median(each(name, "penalty")),
            }
            for name, many in scores.items()
        ],
    )
    lab.measured("gain", over(ours, "LM", "violations"))
    lab.measured("lm", over("LM", "base", "violations"))
    lab.measured("kept", lost(ours))
    lab.measured("lost", lost("rank + LM"))
    lab.measured("sven", over(ours, "two prefixes", "violations"))
    lab.measured("length", over(ours, "base", "read"))
    lab.measured("sums", over("sums", ours, "length"))
    lab.measured("control", over("shuffled", "base", "violations"))


if __name__ == "__main__":
    main()
