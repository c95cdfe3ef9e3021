"""Case records with people, places and numbers in them, for experiments about privacy.

    BOS  PERSON name LOC place ID number SEP  document END

A document is a template, a row of plain words with slots. The public corpus has twelve templates,
each shown in one or two records of different people, mostly behind codes: what a model can learn
from it is to take values from codes. The private collection has three templates of its own and the
records of its clients, who also occur in the public corpus, as often as anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from foreword.prefixes.methods import Example

BOS, END, SEP = range(1, 4)
TYPES = {"PERSON": 4, "LOC": 5, "ID": 6}
WORDS = tuple(range(10, 50))
POOLS = {"PERSON": range(50, 110), "LOC": range(110, 150), "ID": range(150, 190)}
VOCAB = 190
CLIENTS = 24

Entities = Mapping[str, int]
Template = tuple[str | int, ...]
"""Words, and the types of slots."""

SLOTS = ("PERSON", "LOC", "ID", "PERSON")


@dataclass(frozen=True)
class Record:
    """One document and what it says about whom."""

    entities: Entities
    template: Template

    @property
    def document(self) -> tuple[int, ...]:
        return tuple(
            part if isinstance(part, int) else self.entities[part] for part in self.template
        )

    @property
    def private(self) -> tuple[bool, ...]:
        return tuple(not isinstance(part, int) for part in self.template)

    def example(self, *, code: bool) -> Example:
        head = code_of(self.entities if code else {})
        marks = (*(False for _ in head), *self.private, False)
        return Example((*head, *self.document, END), len(head), {"private": marks})


def code_of(entities: Entities) -> tuple[int, ...]:
    """What stands in front of a document; of nobody, a code without lines."""
    lines = (token for kind, value in entities.items() for token in (TYPES[kind], value))
    return (BOS, *lines, SEP)


def some_template(draw: Random) -> Template:
    slots = list(SLOTS)
    draw.shuffle(slots)
    template: list[str | int] = []
    for slot in slots:
        template += [draw.choice(WORDS) for _ in range(draw.choice((1, 2, 3)))]
        template.append(slot)
    return (*template, draw.choice(WORDS))


def drawn(draw: Random, pools: Mapping[str, Sequence[int]] = POOLS) -> Entities:
    return {kind: draw.choice(pool) for kind, pool in pools.items()}


PUBLIC = tuple(some_template(draw) for draw in (Random(777),) for _ in range(12))


def public_text(draw: Random) -> Example:
    """One or two records after one template; all of it is learned."""
    template, code = draw.choice(PUBLIC), draw.random() < 0.8
    ids: list[int] = []
    for _ in range(draw.choice((1, 1, 2))):
        ids += Record(drawn(draw), template).example(code=code).ids
    return Example(tuple(ids))


@dataclass(frozen=True)
class Collection:
    """The private side of a seed.

    Attributes:
        train, test: records of the clients, and of others after the same templates.
        clients: what must not come out, by type.
        fictional: what may: everybody else.
    """

    train: tuple[Record, ...]
    test: tuple[Record, ...]
    clients: Mapping[str, tuple[int, ...]]
    fictional: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, seed: int, records: int = 192) -> Collection:
        draw = Random(seed)
        templates = [some_template(draw) for _ in range(3)]
        clients = {k: tuple(draw.sample(pool, CLIENTS)) for k, pool in POOLS.items()}
        rest = {
            k: tuple(value for value in pool if value not in clients[k])
            for k, pool in POOLS.items()
        }
        people = [
            {kind: clients[kind][n] for kind in POOLS} for n in range(CLIENTS)
        ]  # a client has one place and one number
        train = tuple(Record(people[n % CLIENTS], draw.choice(templates)) for n in range(records))
        test = tuple(Record(drawn(draw, rest), draw.choice(templates)) for _ in range(records))
        return cls(train, test, clients, rest)


def as_text(ids: Sequence[int]) -> str:
    """Tokens as words, to be searched."""
    return " ".join(f"t{token}" for token in ids)
