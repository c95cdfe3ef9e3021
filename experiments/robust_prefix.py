"""Robust Prefix-Tuning: does a second prefix, fitted to each test batch, undo attacks?

`python -m experiments.robust_prefix`; a few minutes on one core. A small model of real SST-2
sentences (`experiments/_sentiment.py`), one trained prefix per seed, and four test sets: clean;
*bugs*, the public perturbed pairs, made by others against another model; *misspelled*, greedy
spelling bugs against the prefix itself; *trigger*, three words in front of every sentence of a
class, chosen against the prefix. No attack knows of the second prefix: none is adaptive.

Arms: the prefix alone; psi as published, in batches and one by one; psi with a random projection of
the same ranks, which must not help; psi that makes the answers certain (minimal entropy); psi
centred on the training mean, which is not published. The rate of each arm is the best of three on
dev sentences, half clean, half misspelled. All accuracies are between the two answers.

An attack that stops when the answer flips leaves an accuracy far below a coin's. From there any
disturbance, of whatever kind, leads back towards 0.5: read the gains beside the random projection's
and beside what each arm loses on clean text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments._sentiment import (
    LABELS,
    Sentence,
    example,
    margins,
    misspelled,
    pairs,
    pretrained,
    sentences,
    triggered,
)
from experiments.lab import Experiment
from foreword.prefixes import PrefixShape
from foreword.prefixes.methods import Batch, Example, RobustPrefix
from foreword.prefixes.training import TrainConfig, train

SETS = ("clean", "bugs", "misspelled", "trigger")
ARMS = ("psi", "random", "entropy", "psi, training mean")
BATCH, EDITS = 50, 5


def main() -> None:
    torch.set_num_threads(1)
    lab = Experiment(
        "robust_prefix",
        paper="Yang & Liu 2022, arXiv 2203.10378",
        claim="A second prefix that moves the states of a test batch onto the canonical manifold "
        "restores the accuracy of an attacked prefix, and costs none on clean text.",
        seeds=range(5),
    )
    lab.expect("task", "clean accuracy of the trained prefix", at_least=0.65)
    lab.expect("attack", "misspelled: accuracy of the prefix / clean", at_most=0.6)
    lab.expect("trigger", "trigger: accuracy of the prefix / clean", at_most=0.6)
    for name in SETS[1:]:
        least = 0.02 if name == "bugs" else 0.1
        lab.expect(f"gain-{name}", f"{name}: accuracy with psi - without", at_least=least)
    lab.expect("clean", "clean: accuracy with psi - without", at_least=-0.02)
    lab.expect("chance", "misspelled: accuracy with psi; a coin has 0.5", at_least=0.55)
    lab.expect("control-random", "misspelled: gain of a random projection of the same ranks",
               at_most=0.03)  # fmt: skip
    lab.expect("real", "misspelled: psi - psi with a random projection", at_least=0.03)
    lab.expect("both", "the same, mean of clean and misspelled", at_least=0.03)
    lab.expect("entropy", "misspelled: psi - psi of minimal entropy", at_least=0)
    lab.expect("single", "misspelled: gain of psi one by one, without a centre", at_least=0.05)
    run_all(lab)
    lab.finish()


class Sizes(NamedTuple):
    """How much of everything."""

    pretrain: int
    steps: int
    test: int
    single: int
    fit: int
    rates: tuple[float, ...]
    turns: tuple[int, ...]


FULL = Sizes(300, 200, 80, 20, 800, (0.01, 0.05, 0.15), (0, 3, 10, 20))


class Trial:
    """One seed: a trained prefix, its manifold, the test sets made against it."""

    def __init__(self, model: Any, seed: int, sizes: Sizes, rate: float) -> None:
        self.model, self.seed, self.sizes, self.rate = model, seed, sizes, rate
        draw = torch.Generator().manual_seed(seed)
        known = [example(each) for each in sentences("train")]
        dev = take(sentences("dev"), 120, draw)
        self.method = RobustPrefix(PrefixShape.of(model), length=10)
        config = TrainConfig(steps=sizes.steps, batch_size=16, lr=rate, seed=seed,
                             eval_every=max(1, sizes.steps // 5))  # fmt: skip
        result = train(model, self.method, known, config, dev=[example(each) for each in dev])
        self.dev_loss = result.best_loss or 0.0
        self.method.requires_grad_(False)
        self.right = self.method.fit(model, take(known, sizes.fit, draw))
        self.draw, self.dev = draw, dev

    def attack(self) -> None:
        """Make the test sets, and dev sentences to choose the rates on."""
        test = take(pairs(), self.sizes.test, self.draw)
        clean = [pair[0] for pair in test]
        trigger, self.triggers = triggered(clean, self.dev[-50:], self.score)
        self.sets: dict[str, list[Sentence]] = {
            "clean": clean,
            "bugs": [pair[1] for pair in test],
            "misspelled": misspelled(clean, self.score, EDITS, self.seed),
            "trigger": trigger,
        }
        half = self.dev[: min(40, self.sizes.test)]
        self.tuning = [half, misspelled(half, self.score, EDITS, self.seed)]

    def score(self, examples: Sequence[Example]) -> Tensor:
        """Margins behind the trained prefix: all that attacks see."""
        return torch.cat([
            margins(self.model, batch, self.method.rows(self.model, batch))
            for batch in batches(examples, 128)
        ])  # fmt: skip

    def accuracy(self, arm: str, given: Sequence[Sentence], rate: float = 0.0, *,
                 size: int = BATCH, turns: int = 10) -> float:  # fmt: skip
        right = 0
        for batch in batches([example(each) for each in given], size):
            if arm == "prefix":
                found = margins(self.model, batch, self.method.rows(self.model, batch))
            else:
                with self.adapted(arm, batch, rate, turns) as rows:
                    found = margins(self.model, batch, rows)
            right += int((found > 0).sum())
        return right / len(given)

    def adapted(self, arm: str, batch: Batch, rate: float, turns: int) -> Any:
        method = self.method
        settings: dict[str, Any] = {"lr": rate, "iterations": turns}
        if arm == "entropy":
            return method.adapted(self.model, batch, objective=entropy, **settings)
        if arm == "psi, training mean":
            return method.adapted(self.model, batch, centre="train", **settings)
        if arm == "psi":
            return method.adapted(self.model, batch, **settings)
        assert method.manifold is not None
        other = RobustPrefix(method.shape, length=method.length)
        other.load_state_dict(method.state_dict())
        other.manifold = method.manifold.random(self.seed)
        return other.adapted(self.model, batch, **settings)

    def best_rate(self, arm: str) -> float:
        return max(self.sizes.rates, key=lambda rate: (sum(self.accuracy(arm, part, rate)
                                                for part in self.tuning), -rate))  # fmt: skip


def entropy(_: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Of the two answers, mean over the batch."""
    two = logits[:, LABELS].log_softmax(-1)
    return -(two.exp() * two).sum(-1).mean()


def batches(examples: Sequence[Example], size: int) -> list[Batch]:
    return [Batch.of(examples[at : at + size]) for at in range(0, len(examples), size)]


def take(items: Sequence[Any], count: int, draw: torch.Generator) -> list[Any]:
    return [items[i] for i in torch.randperm(len(items), generator=draw)[:count].tolist()]


def run_all(lab: Experiment) -> None:
    sizes = Sizes(50, 30, 20, 3, 60, (0.05,), (0, 10)) if lab.quick else FULL
    say(f"training the model, {sizes.pretrain} steps")
    model = pretrained(sizes.pretrain)
    rates = (3e-2,) if lab.quick else (1e-2, 3e-2, 1e-1)
    first = min((Trial(model, 0, sizes, rate) for rate in rates), key=lambda each: each.dev_loss)
    found: dict[tuple[str, str], list[float]] = {}
    turned: dict[tuple[int, str], list[float]] = {}
    chosen: dict[str, list[float]] = {}
    facts = []
    for seed in lab.seeds:
        trial = first if seed == 0 else Trial(model, seed, sizes, first.rate)
        trial.attack()
        tuned = {arm: trial.best_rate(arm) for arm in ARMS}
        for arm, best in tuned.items():
            chosen.setdefault(arm, []).append(best)
        for name, given in trial.sets.items():
            found.setdefault(("prefix", name), []).append(trial.accuracy("prefix", given))
            for arm in ARMS:
                value = trial.accuracy(arm, given, tuned[arm])
                found.setdefault((arm, name), []).append(value)
            if name in ("clean", "misspelled"):
                ask = partial(trial.accuracy, given=given[: sizes.single])
                found.setdefault(("few: prefix", name), []).append(ask("prefix"))
                one = ask("psi", rate=tuned["psi"], size=1)
                found.setdefault(("few: psi one by one", name), []).append(one)
            say(
                f"seed {seed}  {name}: "
                + "  ".join(
                    f"{arm} {each[-1]:.2f}" for (arm, kind), each in found.items() if kind == name
                )
            )
        for turns in sizes.turns:
            for name in ("clean", "misspelled"):
                value = trial.accuracy("psi", trial.sets[name], tuned["psi"], turns=turns)
                turned.setdefault((turns, name), []).append(value)
        manifold = trial.method.manifold
        facts.append({"seed": seed, "right": trial.right, "triggers": trial.triggers,
                      "ranks": manifold.ranks if manifold else ()})  # fmt: skip
    report(lab, found, turned, chosen)
    lab.fact("trials", facts)
    lab.fact("training examples for the manifold", sizes.fit)


def report(lab: Experiment, found: dict[tuple[str, str], list[float]],
           turned: dict[tuple[int, str], list[float]], chosen: dict[str, list[float]],
           ) -> None:  # fmt: skip
    names = list(dict.fromkeys(arm for arm, _ in found))
    lab.table(
        "Accuracy, mean over seeds (few: on the first sentences only)",
        [
            {"arm": arm, **{n: mean(found[arm, n]) if (arm, n) in found else None for n in SETS},
             "rates chosen": " ".join(f"{r:g}" for r in chosen.get(arm, [])) or "-"}
            for arm in names
        ],
    )  # fmt: skip
    lab.table(
        "Steps of Adam against accuracy, psi in batches, mean over seeds",
        [
            {"steps": turns, **{n: mean(turned[turns, n]) for n in ("clean", "misspelled")}}
            for turns in sorted({turns for turns, _ in turned})
        ],
    )

    def gain(arm: str, name: str, base: str = "prefix") -> list[float]:
        return [a - b for a, b in zip(found[arm, name], found[base, name], strict=True)]

    def share(name: str) -> list[float]:
        both = zip(found["prefix", name], found["prefix", "clean"], strict=True)
        return [attacked / clean for attacked, clean in both]

    lab.measured("task", found["prefix", "clean"])
    lab.measured("attack", share("misspelled"))
    lab.measured("trigger", share("trigger"))
    for name in SETS[1:]:
        lab.measured(f"gain-{name}", gain("psi", name))
    lab.measured("clean", gain("psi", "clean"))
    lab.measured("control-random", gain("random", "misspelled"))
    lab.measured("real", gain("psi", "misspelled", "random"))
    means = zip(gain("psi", "clean", "random"), gain("psi", "misspelled", "random"), strict=True)
    lab.measured("both", [mean(each) for each in means])
    lab.measured("chance", found["psi", "misspelled"])
    lab.measured("entropy", gain("psi", "misspelled", "entropy"))
    lab.measured("single", gain("few: psi one by one", "misspelled", "few: prefix"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
