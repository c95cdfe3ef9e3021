"""Prompt Gating: plugins trained alone, read together; do gates keep them from disturbing?

`python -m experiments.prompt_gating`; some minutes on one core. In the world of `_records.py` a
base model that read sentences in all styles is to write in one that it never saw, of which each
plugin knows one aspect alone: the *order* of the fields, their *wordings*, or the *frame*
(beginning, joints, end). A plugin is trained on texts whose other aspects are drawn anew for each.

An aspect's accuracy is the share of its decisions (the first word of a phrase for order and
wording, the first of the frame's words) where the most probable token keeps to it, teacher-forced
on texts that have all three aspects. Interference is the accuracy of a plugin alone less that with
all three plugins in front. A stronger plugin disturbs more, so training stops at three places and
arms are compared at one accuracy of plugins alone, between those places.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import mean, median
from typing import Any

import torch

from experiments._records import (
    BEGINNINGS,
    ENDS,
    FIELDS,
    JOINTS,
    SEEN,
    UNSEEN,
    WORDINGS,
    Record,
    Style,
    World,
    pretrained,
)
from experiments.lab import Experiment
from foreword.prefixes import Prefix, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Batch, Example, PromptGating
from foreword.prefixes.training import TrainConfig, train

ASPECTS = ("order", "wording", "frame")
PAIRS = tuple(combinations(ASPECTS, 2))
LAYERS, LENGTH = 3, 6
OFFSET = len(ASPECTS) * LENGTH
RATES = (3e-2, 1e-1, 3e-1)
TUNING = 100
"""The seed that learning rates are chosen on."""

GATED, PROMPT = "gated prompt", "prefix at 1 layer (a prompt)"
ARMS: dict[str, dict[str, Any]] = {
    PROMPT: {"gated": False, "layers": 1},
    **{
        f"prefix at {layers} layers": {"gated": False, "layers": layers}
        for layers in range(2, LAYERS + 1)
    },
    GATED: {"gated": True, "layers": 1},
}
ALL_LAYERS = f"prefix at {LAYERS} layers"


@dataclass(frozen=True)
class Decision:
    """A token that an aspect decides: where it is predicted, and which ones keep to the aspect."""

    aspect: str
    at: int
    allowed: frozenset[int]


def first(world: World, phrase: str) -> int:
    return world.encode(phrase.split()[:1])[0]


def decisions(world: World, style: Style, prompt: int) -> list[Decision]:
    """All of a sentence's; `at` is the position before the token."""

    def opening(field: int, wording: int) -> int:
        return first(world, WORDINGS[FIELDS[field]][wording].format(f"{FIELDS[field]}0"))

    def fixed(phrase: str) -> Decision:
        return Decision("frame", at - 1, frozenset({first(world, phrase)}))

    at, made = prompt, []
    for place, field in enumerate(style.order):
        phrase = JOINTS[style.joint] if place else BEGINNINGS[style.beginning]
        if place < 2:  # later joints are told by the first
            made.append(fixed(phrase))
        at += len(phrase.split())
        left = style.order[place:]
        ways = {(f, way): opening(f, way) for f in left for way in range(len(WORDINGS[FIELDS[f]]))}
        keeping = {
            "order": {key for key in ways if key[0] == field},
            "wording": {key for key in ways if key[1] == style.wordings[key[0]]},
        }
        for aspect, keys in keeping.items():
            # A word that also opens a phrase that does not keep to the aspect tells nothing of it.
            allowed = {ways[key] for key in keys} - {ways[key] for key in ways.keys() - keys}
            if ways[field, style.wordings[field]] in allowed and len(left) > 1:
                made.append(Decision(aspect, at - 1, frozenset(allowed)))
        at += len(WORDINGS[FIELDS[field]][style.wordings[field]].split())
    made.append(fixed(ENDS[style.end]))
    return made


def mixed(world: World, target: Style, aspects: Sequence[str], rng: random.Random) -> Style:
    """A style with these aspects of the target's, and the others drawn."""
    other = world.random_style(rng)
    order, wording, frame = (target if aspect in aspects else other for aspect in ASPECTS)
    return Style(order.order, wording.wordings, frame.beginning, frame.joint, frame.end)


def texts(
    world: World, target: Style, aspects: Sequence[str], count: int, seed: int,
    values: Sequence[int],
) -> list[tuple[Example, Style]]:  # fmt: skip
    rng = random.Random(f"{seed} {aspects} {values}")
    records: list[Record] = world.records(count, rng, values)
    styles = [mixed(world, target, aspects, rng) for _ in records]
    return [(world.example(s, r), s) for s, r in zip(styles, records, strict=True)]


@torch.no_grad()
def accuracy(
    world: World, model: Any, plugins: Sequence[Prefix], test: Sequence[tuple[Example, Style]]
) -> dict[str, float]:
    """Of each aspect, behind these plugins."""
    batch = Batch.of([example for example, _ in test])
    joined = PrefixRows.of([Prefix.concat(plugins)] * len(batch)) if plugins else None
    guesses = run(model, batch.ids, batch.mask, joined).logits.argmax(-1)
    hits: dict[str, list[bool]] = {aspect: [] for aspect in ASPECTS}
    for row, (example, style) in enumerate(test):
        for decision in decisions(world, style, example.prompt):
            hits[decision.aspect].append(int(guesses[row, decision.at]) in decision.allowed)
    return {aspect: mean(each) for aspect, each in hits.items()}


def train_in_parts(
    model: Any, data: Sequence[Example], lr: float, seed: int, steps: int, parts: int,
    **settings: Any,
) -> list[Prefix]:  # fmt: skip
    """One plugin, as it was after each part of its training."""
    torch.manual_seed(seed)
    shape = PrefixShape.of(model)
    length = settings.pop("length", LENGTH)
    method = PromptGating(shape, length=length, position_offset=OFFSET, **settings)
    method.start(model, data)
    method.start = lambda *_: None  # type: ignore[method-assign]  # each part goes on
    made = []
    for part in range(parts):
        config = TrainConfig(steps=steps // parts, batch_size=16, lr=lr, seed=seed + part,
                             schedule="constant")  # fmt: skip
        train(model, method, data, config)
        made += method.export(model).values()
    return made


def at_equal(points: Sequence[tuple[float, float]], alone: float) -> float:
    """Accuracy together where that alone is `alone`: between points (alone, together)."""
    points = sorted(points)
    if alone <= points[0][0]:
        return points[0][1]
    for (low, left), (high, right) in pairwise(points):
        if alone <= high:
            share = (alone - low) / max(high - low, 1e-9)
            return left + share * (right - left)
    return points[-1][1]


def say(text: str) -> None:
    print(f"{time.process_time():6.0f} s  {text}", file=sys.stderr, flush=True)


class Trial:
    """One seed: a target style, its texts, and what came out of each arm."""

    def __init__(self, world: World, model: Any, seed: int, steps: int, parts: int) -> None:
        self.world, self.model, self.seed = world, model, seed
        self.steps, self.parts = steps, parts
        self.target = world.new_style(seed)
        self.test = texts(world, self.target, ASPECTS, 60, seed, UNSEEN)

    def learned(self, aspects: Sequence[str], lr: float, **settings: Any) -> list[Prefix]:
        data = texts(self.world, self.target, aspects, 200, self.seed, SEEN)
        examples = [example for example, _ in data]
        return train_in_parts(
            self.model, examples, lr, self.seed, self.steps, self.parts, **settings
        )

    def accuracy(self, *plugins: Prefix) -> dict[str, float]:
        return accuracy(self.world, self.model, plugins, self.test)

    def arm(self, lr: float, settings: dict[str, Any]) -> list[dict[str, float]]:
        """After each part: accuracy alone, in pairs and with all three, means over aspects."""
        plugins = {aspect: self.learned((aspect,), lr, **settings) for aspect in ASPECTS}
        out = []
        for part in range(self.parts):
            now = {aspect: plugins[aspect][part] for aspect in ASPECTS}
            alone = mean(self.accuracy(now[aspect])[aspect] for aspect in ASPECTS)
            pairs = []
            for pair in PAIRS:
                seen = self.accuracy(*(now[aspect] for aspect in pair))
                pairs += [seen[aspect] for aspect in pair]
            every = mean(self.accuracy(*now.values()).values())
            out.append({"alone": alone, "pairs": mean(pairs), "all": every})
        return out


def expect(lab: Experiment) -> None:
    """What is claimed, before anything runs."""
    lab.expect(
        "layers",
        f"interference of prefixes at {LAYERS} layers - at 1, all of the training",
        at_least=0.01,
    )
    lab.expect(
        "layers-equal",
        "the same at equal accuracy alone",
        at_least=0,
    )
    lab.expect(
        "gated",
        "interference of ungated prompts - of gated ones, at equal accuracy alone",
        at_least=0,
    )
    lab.expect(
        "gated-layers",
        f"interference of prefixes at {LAYERS} layers - of gated prompts, at equal accuracy alone",
        at_least=0.01,
    )
    lab.expect("works", "accuracy of a gated plugin alone - of the model without", at_least=0.2)
    lab.expect("joint", "accuracy of a prompt trained for all aspects - of three gated together",
               at_least=0)  # fmt: skip
    lab.expect(
        "control",
        "must fail: accuracy behind a plugin trained on texts that fix no aspect - without one",
        at_most=0.05,
    )


def main() -> None:
    lab = Experiment(
        "prompt_gating",
        paper="Huang et al. 2023, arXiv 2212.09387",
        claim="Plugins trained alone disturb each other more, the more layers they stand in, and "
        "less if they are gated.",
        seeds=range(5),
    )
    torch.set_num_threads(1)
    expect(lab)
    steps, parts = (45, 3) if lab.quick else (150, 3)
    base = pretrained(
        0, marks=False, others=1.0, layers=LAYERS, hidden=64, steps=100 if lab.quick else 500
    )
    world, model = base.world, base.model
    say(f"base model trained, loss {base.loss:.3f}")

    tuning = Trial(world, model, TUNING, steps, parts)
    rates: dict[str, float] = {}
    for arm, settings in ARMS.items():
        sweep = RATES[1:2] if lab.quick else RATES
        seen = {lr: tuning.arm(lr, settings)[-1] for lr in sweep}
        rates[arm] = max(seen, key=lambda lr: seen[lr]["alone"])
        say(f"{arm}: " + ", ".join(f"{lr:g} {s['alone']:.3f}/{s['all']:.3f}"
                                   for lr, s in seen.items()))  # fmt: skip
    lab.fact("learning rates", rates)
    lab.fact("settings", {"length": LENGTH, "offset": OFFSET, "steps": steps, "batch": 16,
                          "examples": 200, "base layers": LAYERS})  # fmt: skip

    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in lab.seeds:
        trial = Trial(world, model, seed, steps, parts)
        points = {arm: trial.arm(rates[arm], settings) for arm, settings in ARMS.items()}
        without = mean(trial.accuracy().values())
        (*_, joint) = trial.learned(ASPECTS, rates[PROMPT], gated=False, length=OFFSET)
        (*_, nothing) = trial.learned((), rates[GATED])
        together = mean(trial.accuracy(joint).values())
        for arm, found in points.items():
            rows[arm].append({**found[-1], "without": without, "joint": together})
        judge(lab, points, without, together, mean(trial.accuracy(nothing).values()))
        say(
            f"seed {seed}: without {without:.3f}, joint {together:.3f}; "
            + ", ".join(
                f"{arm} {f[-1]['alone']:.3f}/{f[-1]['all']:.3f}" for arm, f in points.items()
            )
        )
    table(lab, rows)
    lab.finish()


def judge(
    lab: Experiment, points: dict[str, list[dict[str, float]]], without: float, joint: float,
    nothing: float,
) -> None:  # fmt: skip
    def lost(arm: str) -> float:
        return points[arm][-1]["alone"] - points[arm][-1]["all"]

    def fewer(arm: str, other: str) -> float:
        """Interference of `arm` less that of `other` where both are as good alone."""
        curves = [[(p["alone"], p["all"]) for p in points[each]] for each in (arm, other)]
        alone = min(max(alone for alone, _ in curve) for curve in curves)
        return at_equal(curves[1], alone) - at_equal(curves[0], alone)

    lab.measured("layers", lost(ALL_LAYERS) - lost(PROMPT))
    lab.measured("layers-equal", fewer(ALL_LAYERS, PROMPT))
    lab.measured("gated", fewer(PROMPT, GATED))
    lab.measured("gated-layers", fewer(ALL_LAYERS, GATED))
    lab.measured("works", points[GATED][-1]["alone"] - without)
    lab.measured("joint", joint - points[GATED][-1]["all"])
    lab.measured("control", nothing - without)


def table(lab: Experiment, rows: dict[str, list[dict[str, float]]]) -> None:
    def middle(arm: str, key: str) -> float:
        return round(median(row[key] for row in rows[arm]), 3)

    lab.table(
        "accuracy of the aspects at the end of training (medians over seeds)",
        [
            {
                "arm": arm,
                "plugin alone": middle(arm, "alone"),
                "two together": middle(arm, "pairs"),
                "three together": middle(arm, "all"),
                "interference": round(median(r["alone"] - r["all"] for r in found), 3),
                "no plugin": middle(arm, "without"),
                "trained for all": middle(arm, "joint"),
            }
            for arm, found in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
