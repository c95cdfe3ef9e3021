"""A world of records and sentences, small enough to train a model of it in half a minute.

A record has six fields, each with one of 24 values; a *style* says in which order a sentence speaks
of them, in which words, and what it begins, joins and ends with:

    record     | name7 | food3 | price20 | area1 | rating9 | guests14 :
    sentence   well , in area1 you find name7 ; it costs price20 ; ...  .

Words are tokens. A base model is trained on all 24 values in twelve styles. What comes after is a
style it never saw, shown with few examples whose values are the first twelve (`SEEN`); what was
learned of the style, and not of the values, shows on the other twelve (`UNSEEN`), which the base
model knows and the examples do not have.

`World(seed)` draws the styles. `World(seed, latent=True)` makes each style from a point of the
plane, so that near points give styles that share most of their order and words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import cos, log, pi, sin
from typing import Any, NamedTuple

import torch

from experiments._small import pretrain, tiny_llama
from foreword.prefixes import run
from foreword.prefixes.methods import Batch, Example
from foreword.prefixes.objectives import lm_loss

FIELDS = ("name", "food", "price", "area", "rating", "guests")
VALUES = 24
SEEN = range(12)
UNSEEN = range(12, VALUES)
STYLES = 12
MARKS = 32
"""Tokens a style may be announced with: `<0>` to `<31>`; the base knows those of its styles."""

WORDINGS = {
    "name": ("here is {} now", "you find {}", "this is {}", "come to {}", "go to {}"),
    "food": ("it serves {}", "with {} food", "cooks are {}", "the kitchen is {}", "try its {}"),
    "price": ("it costs {}", "at {} prices", "expect {} a head", "the bill is {}", "pay {}"),
    "area": ("in {}", "near the {} side", "see it in {}", "by the {}", "located at {}"),
    "rating": ("rated {}", "guests say {}", "scored {} there", "it has {} stars", "known as {}"),
    "guests": ("for {}", "often seen : {}", "good with {}", "it suits {}", "bring {}"),
}
BEGINNINGS = ("well ,", "look :", "so", "news :", "listen ,")
JOINTS = (",", ";", "and", "then", "-")
ENDS = (".", "!", "ok .")
END = "<end>"

Record = tuple[int, ...]
"""A value, 0 to 23, for each field."""


@dataclass(frozen=True)
class Style:
    """How sentences are written: see the module.

    Attributes:
        order: fields by index, in the order they are spoken of.
        wordings: which of its `WORDINGS` each field (by index) has.
        beginning, joint, end: indices of `BEGINNINGS`, `JOINTS`, `ENDS`.
        point: where in the plane it lies, for styles that come from there.
    """

    order: tuple[int, ...]
    wordings: tuple[int, ...]
    beginning: int
    joint: int
    end: int
    point: tuple[float, float] = (0.0, 0.0)

    def sentence(self, record: Record) -> list[str]:
        """The words of a record's sentence, the end mark last."""
        joint = f" {JOINTS[self.joint]} "
        said = joint.join(
            WORDINGS[FIELDS[f]][self.wordings[f]].format(f"{FIELDS[f]}{record[f]}")
            for f in self.order
        )
        return f"{BEGINNINGS[self.beginning]} {said} {ENDS[self.end]} {END}".split()


@dataclass(frozen=True)
class World:
    """Styles and the vocabulary they are written in.

    Args:
        seed: draws the styles.
        latent: styles come from points of the plane instead of being drawn one by one.
    """

    seed: int = 0
    latent: bool = False
    _ids: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = ["|", ":", END, *(f"<{mark}>" for mark in range(MARKS))]
        words += [f"{name}{value}" for name in FIELDS for value in range(VALUES)]
        for phrases in (*WORDINGS.values(), BEGINNINGS, JOINTS, ENDS):
            words += [word for phrase in phrases for word in phrase.split() if word != "{}"]
        self._ids.update({word: i for i, word in enumerate(dict.fromkeys(words))})

    @property
    def vocab(self) -> int:
        """Tokens there are."""
        return len(self._ids)

    @cached_property
    def styles(self) -> tuple[Style, ...]:
        """The twelve styles of the base model, all different."""
        if self.latent:
            angle = random.Random(self.seed).random()
            ring = [(angle + k) * 2 * pi / STYLES for k in range(STYLES)]
            return tuple(self.style_at((cos(a), sin(a))) for a in ring)
        return tuple(self._drawn(random.Random(self.seed), STYLES, ()))

    def new_style(self, seed: int) -> Style:
        """A style that is none of the twelve, drawn by `seed`."""
        return next(iter(self._drawn(random.Random(f"new {self.seed} {seed}"), 1, self.styles)))

    def _drawn(self, rng: random.Random, count: int, taken: Sequence[Style]) -> Iterator[Style]:
        known = set(taken)
        while count:
            style = self.random_style(rng)
            if style not in known:
                known.add(style)
                count -= 1
                yield style

    def random_style(self, rng: random.Random) -> Style:
        """A style of which every choice is drawn on its own."""
        return Style(
            tuple(rng.sample(range(len(FIELDS)), len(FIELDS))),
            tuple(rng.randrange(len(WORDINGS[name])) for name in FIELDS),
            rng.randrange(len(BEGINNINGS)),
            rng.randrange(len(JOINTS)),
            rng.randrange(len(ENDS)),
        )

    def style_at(self, point: tuple[float, float]) -> Style:
        """The style of a point of the plane; near points have mostly the same.

        Fields are ordered by their projections on one random direction each, and every choice
        among k phrases cuts the projection on another direction into k strips.
        """
        rng = random.Random(f"plane {self.seed}")

        def projection() -> float:
            angle = rng.uniform(0, 2 * pi)
            return point[0] * cos(angle) + point[1] * sin(angle)

        def strip(count: int) -> int:
            return min(count - 1, max(0, int((projection() + 1) / 2 * count)))

        ranks = [projection() + rng.uniform(-0.5, 0.5) for _ in FIELDS]
        return Style(
            tuple(sorted(range(len(FIELDS)), key=lambda f: ranks[f])),
            tuple(strip(len(WORDINGS[name])) for name in FIELDS),
            strip(len(BEGINNINGS)),
            strip(len(JOINTS)),
            strip(len(ENDS)),
            point,
        )

    def records(self, count: int, rng: random.Random, values: Sequence[int]) -> list[Record]:
        """Different records, every field's value drawn from `values`."""
        drawn: dict[Record, None] = {}
        while len(drawn) < count:
            drawn[tuple(rng.choice(values) for _ in FIELDS)] = None
        return list(drawn)

    def encode(self, words: Sequence[str]) -> tuple[int, ...]:
        """Token ids of words, all of them known."""
        return tuple(self._ids[word] for word in words)

    def decode(self, ids: Sequence[int]) -> str:
        """The words of token ids."""
        words = list(self._ids)
        return " ".join(words[i] for i in ids)

    def mark(self, number: int) -> int:
        """Token id of the mark `<number>`."""
        return self._ids[f"<{number}>"]

    def example(
        self,
        style: Style,
        record: Record,
        *,
        mark: int | None = None,
        attributes: dict[str, str] | None = None,
    ) -> Example:
        """A record as the prompt, its sentence as the completion.

        Args:
            mark: the number of a mark that stands in front of the record.
            attributes: for `Example.fields`, as control methods read it.
        """
        prompt = [] if mark is None else [f"<{mark}>"]
        for name, value in zip(FIELDS, record, strict=True):
            prompt += ["|", f"{name}{value}"]
        prompt.append(":")
        fields: dict[str, Any] = {} if attributes is None else {"attributes": attributes}
        ids = self.encode([*prompt, *style.sentence(record)])
        return Example(ids, len(prompt), fields)

    def examples(
        self,
        style: Style,
        count: int,
        seed: int,
        values: Sequence[int] = SEEN,
        *,
        mark: int | None = None,
        attributes: dict[str, str] | None = None,
    ) -> list[Example]:
        """Examples of different records in one style; the same for the same arguments."""
        rng = random.Random(f"records {self.seed} {seed}")
        return [
            self.example(style, record, mark=mark, attributes=attributes)
            for record in self.records(count, rng, values)
        ]


class Base(NamedTuple):
    """A world and a model of it.

    Attributes:
        world: its styles.
        model: frozen; whoever changes it works on a copy (`copy.deepcopy`).
        loss: mean loss per label of the last 20 steps of its training, in nats.
        floor: the least that can be: what there is to guess about the style, per label.
    """

    world: World
    model: Any
    loss: float
    floor: float


@cache
def pretrained(
    seed: int = 0,
    *,
    marks: bool = True,
    latent: bool = False,
    others: float = 0.0,
    steps: int = 500,
    layers: int = 3,
    hidden: int = 96,
) -> Base:
    """A model trained on all values in a world's twelve styles; kept per process.

    With `others` it also read sentences in no style twice: it knows all orders and words apart from
    each other, as a large model would, and only those of a new style have to be picked.

    About 25 s on one core, 12 s with `layers=2, hidden=64`; the loss ends within 0.02 of its floor.

    Args:
        marks: a mark `<k>` in front of the record says that the k-th style follows. Without, the
            model knows no mark and the style is open until the sentence shows it: `floor` is then
            log(12) nats per sentence instead of 0.
        others: share of its examples in styles drawn anew each time, without a mark. `loss` and
            `floor` are then of the twelve styles alone.
    """
    world = World(seed, latent)
    model = tiny_llama(world.vocab, layers=layers, hidden=hidden, spread=0.1, seed=seed)
    rng = random.Random(f"base {seed}")

    def one(share: float) -> Example:
        record = tuple(rng.randrange(VALUES) for _ in FIELDS)
        if rng.random() < share:
            return world.example(world.random_style(rng), record)
        number = rng.randrange(STYLES)
        return world.example(world.styles[number], record, mark=number if marks else None)

    loss = pretrain(model, lambda count: [one(others) for _ in range(count)], steps=steps, lr=5e-3)
    if others:
        batch = Batch.of([one(0.0) for _ in range(256)])
        with torch.no_grad():
            loss = float(lm_loss(run(model, batch.ids, batch.mask).logits, batch.labels))
    record = (0,) * len(FIELDS)
    words = sum(len(style.sentence(record)) for style in world.styles) / STYLES
    distinct = len({tuple(style.sentence(record)) for style in world.styles})
    return Base(world, model, loss, 0.0 if marks else log(distinct) / words)
