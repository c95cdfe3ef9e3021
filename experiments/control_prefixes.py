"""Control Prefixes against label tokens, prefixes apart, and prefixes without labels.

`python -m experiments.control_prefixes`; some minutes on one core. In the world of `_records.py` a
base model, which knows no marks of styles, is to write twelve styles that it never saw, named by
labels, from twenty examples each. All arms store the same number of values and see the same
batches; the learning rate of each is chosen on development records of a seed that is not tested.

Then labels that nobody trained: twelve styles are points of a plane, three of them held out, and
a side embedding (the point) says which seen label is near.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from functools import cache
from math import cos, pi, sin
from statistics import mean, median, stdev
from typing import Any

import torch

from experiments._label_arms import (
    APART,
    APART_MLP,
    ARMS,
    BLOCK,
    LABELS,
    MLP,
    SHARED,
    SHUFFLED,
    TASK,
    WHOLE,
    columns,
    learned,
    score,
)
from experiments._records import SEEN, STYLES, UNSEEN, Style, World, pretrained
from experiments.lab import Experiment
from foreword.prefixes import PrefixShape
from foreword.prefixes.methods import ControlPrefixes, Example, Method

PER_STYLE = 20
HELD_OUT = 3
TUNING = 100
"""The seed that learning rates are chosen on."""


def examples(
    world: World, styles: Sequence[Style], count: int, seed: int, values: Sequence[int]
) -> list[Example]:
    return [
        example
        for number, style in enumerate(styles)
        for example in world.examples(
            style, count, seed * 100 + number, values, attributes={"style": LABELS[number]}
        )
    ]


def task_of(world: World, seed: int) -> tuple[list[Example], list[Example], list[Example]]:
    """Twelve new styles: examples to learn from, to choose rates with, and to be judged by."""
    styles = [world.new_style(100 * seed + number) for number in range(STYLES)]
    return (
        examples(world, styles, PER_STYLE, 3 * seed, SEEN),
        examples(world, styles, 5, 3 * seed + 1, SEEN),
        examples(world, styles, 10, 3 * seed + 2, UNSEEN),
    )


def shuffled(data: Sequence[Example], seed: int) -> list[Example]:
    """The same examples with each other's labels."""
    labels = [example.fields for example in data]
    random.Random(seed).shuffle(labels)
    return [Example(e.ids, e.prompt, f) for e, f in zip(data, labels, strict=True)]


def unseen_labels(model: Any, seed: int, lr: float, steps: int) -> dict[str, float]:
    """Share of right tokens in held-out styles under each fall-back; "trained" is of the others."""
    world = World(1000 + seed, latent=True)
    rng = random.Random(seed)
    angles = [2 * pi * (k + rng.uniform(-0.3, 0.3)) / STYLES for k in range(STYLES)]
    points = [(cos(angle), sin(angle)) for angle in angles]
    styles = [world.style_at(point) for point in points]
    held = [LABELS[k] for k in range(0, STYLES, STYLES // HELD_OUT)]
    kept = [label for label in LABELS if label not in held]
    vectors = {"style": dict(zip(LABELS, points, strict=True))}

    def make(shape: PrefixShape, **settings: Any) -> Method:
        return ControlPrefixes(
            shape,
            attributes={"style": kept},
            length=TASK,
            control_length=BLOCK,
            **MLP,
            **settings,
        )

    def told(example: Example) -> str:
        return str(example.fields["attributes"]["style"])

    data = [e for e in examples(world, styles, PER_STYLE, 3 * seed, SEEN) if told(e) in kept]
    test = examples(world, styles, 10, 3 * seed + 2, UNSEEN)
    method = learned(model, make, data, lr, seed, steps)
    out = {"trained": score(model, method, [e for e in test if told(e) in kept])[1]}
    test = [example for example in test if told(example) in held]
    for way in ("nearest", "zero"):
        other = make(PrefixShape.of(model), unseen=way, embeddings=vectors)
        other.load_state_dict(method.state_dict())
        out[way] = score(model, other, test)[1]
    guessed = [
        Example(e.ids, e.prompt, {"attributes": {"style": label}}) for e in test for label in kept
    ]  # every seen label for every record: the mean of a label drawn at random
    out["random"] = score(model, method, guessed)[1]
    return out


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    lab.expect(
        "over-tokens",
        "exact match: control prefixes with a shared MLP - label tokens of equal size",
        at_least=0.02,
    )
    lab.expect("over-separate", "exact match: shared MLP - separate MLPs", at_least=0)
    lab.expect(
        "over-apart",
        "exact match: shared MLP - 12 prefixes of equal size in all, the better kind",
        at_least=0.02,
    )
    lab.expect("tokens", "exact match: label tokens - a prefix without labels", at_least=0.02)
    lab.expect(
        "control",
        "must fail: exact match with labels shuffled - a prefix without labels",
        at_most=0.05,
    )
    lab.expect("nearest", "unseen label, tokens right: nearest label - zero block", at_least=0)
    lab.expect("zero", "unseen label, tokens right: zero block - random label", at_least=0)
    lab.expect(
        "margin", "nearest - zero: mean over seeds / standard deviation over seeds", at_least=1
    )


def main() -> None:
    lab = Experiment(
        "control_prefixes",
        paper="Clive, Cao & Rei 2022, arXiv 2110.08329",
        claim="A block per label steers better than the label as tokens or a prefix per label, and "
        "similar labels stand in for unseen ones.",
        seeds=range(5),
    )
    torch.set_num_threads(1)
    expect(lab)
    steps = 40 if lab.quick else 200
    base = pretrained(
        0, marks=False, others=1.0, layers=2, hidden=64, steps=100 if lab.quick else 500
    )
    world, model = base.world, base.model
    say(f"base model trained, loss {base.loss:.3f}")

    @cache
    def task(seed: int) -> tuple[list[Example], list[Example], list[Example]]:
        return task_of(world, seed)

    rates: dict[str, float] = {}
    for arm, (make, sweep) in ARMS.items():
        data, dev, _ = task(TUNING)
        seen = {
            lr: score(model, learned(model, make, data, lr, TUNING, steps), dev)
            for lr in (sweep[1:3] if lab.quick else sweep)
        }
        rates[arm] = max(seen, key=lambda lr: seen[lr])
        say(f"{arm}: {', '.join(f'{lr:g} {s[0]:.3f}' for lr, s in seen.items())}")
    lab.fact("learning rates", rates)
    lab.fact("settings", {"task": TASK, "block": BLOCK, "examples per style": PER_STYLE,
                          "steps": steps, "batch": 24, **MLP})  # fmt: skip

    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in (*ARMS, SHUFFLED)}
    fallen: dict[str, list[float]] = {}
    for seed in lab.seeds:
        data, _, test = task(seed)
        for arm in found:
            make = ARMS[SHARED if arm == SHUFFLED else arm][0]
            told = shuffled(data, seed) if arm == SHUFFLED else data
            lr = rates[SHARED if arm == SHUFFLED else arm]
            found[arm].append(score(model, learned(model, make, told, lr, seed, steps), test))
        say(f"seed {seed}: " + ", ".join(f"{arm} {s[-1][0]:.3f}" for arm, s in found.items()))
        for way, right in unseen_labels(model, seed, rates[SHARED], steps).items():
            fallen.setdefault(way, []).append(right)
        say("  unseen: " + ", ".join(f"{way} {s[-1]:.3f}" for way, s in fallen.items()))
    judge(lab, {arm: [exact for exact, _ in scores] for arm, scores in found.items()}, fallen)
    shape = PrefixShape.of(model)
    lab.table(
        "twelve new styles, values not among the examples' (medians over seeds)",
        [
            {
                "arm": arm,
                "stored": None if arm == SHUFFLED else WHOLE * columns(shape),
                "trained": None if arm == SHUFFLED else ARMS[arm][0](shape).trained,
                "learning rate": rates.get(arm),
                "exact match": round(median(exact for exact, _ in scores), 3),
                "least": round(min(exact for exact, _ in scores), 3),
                "most": round(max(exact for exact, _ in scores), 3),
                "tokens right": round(median(right for _, right in scores), 3),
            }
            for arm, scores in found.items()
        ],
    )
    lab.table(
        "labels that nobody trained (share of tokens right; medians over seeds)",
        [
            {
                "label": way,
                "tokens right": round(median(each), 3),
                "least": round(min(each), 3),
                "most": round(max(each), 3),
            }
            for way, each in fallen.items()
        ],
    )
    lab.finish()


def judge(lab: Experiment, exact: dict[str, list[float]], fallen: dict[str, list[float]]) -> None:
    shared, alone = exact[SHARED], exact["task prefix alone"]

    def minus(left: Sequence[float], right: Sequence[float]) -> list[float]:
        return [a - b for a, b in zip(left, right, strict=True)]

    apart = [max(both) for both in zip(exact[APART_MLP], exact[APART], strict=True)]
    lab.measured("over-tokens", minus(shared, exact["label tokens"]))
    lab.measured("over-separate", minus(shared, exact["control, separate MLPs"]))
    lab.measured("over-apart", minus(shared, apart))
    lab.measured("tokens", minus(exact["label tokens"], alone))
    lab.measured("control", minus(exact[SHUFFLED], alone))
    nearer = minus(fallen["nearest"], fallen["zero"])
    lab.measured("nearest", nearer)
    lab.measured("zero", minus(fallen["zero"], fallen["random"]))
    if len(nearer) > 1:
        lab.measured("margin", mean(nearer) / max(stdev(nearer), 1e-9))


def say(text: str) -> None:
    print(f"{time.process_time():6.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
