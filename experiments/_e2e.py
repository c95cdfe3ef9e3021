"""E2E NLG (Novikova et al. 2017): restaurants as tables, what people wrote of them, and how near.

Tables are written as `name: The Mill; type: pub; area: riverside`, a line of its own in front of
the text. Only texts that are short together with their table are taken: a core has eight minutes.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from foreword.models import Tokenizer
from foreword.prefixes.methods import Example

LONGEST = 72
"""Tokens of table and text together, at most."""
KEYS = {
    "name": "name",
    "eatType": "type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "rating",
    "area": "area",
    "familyFriendly": "family",
    "near": "near",
}
"""What a field is called here: a short word."""


@dataclass(frozen=True)
class Table:
    """One meaning representation and all that was written of it.

    Attributes:
        slots: fields and values, in the file's order.
        prompt: its line, in token ids.
        texts: every reference.
        examples: those that are short enough; the text ends with the end-of-text token.
    """

    slots: tuple[tuple[str, str], ...]
    prompt: tuple[int, ...]
    texts: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Split:
    """What one seed trains on, stops by and is judged by; no two parts share a table.

    Attributes:
        pool: examples in random order, of which the first N are trained on.
        dev: one text for each of its tables.
        tables: of the test.
        test: two texts at most for each of them.
    """

    pool: list[Example]
    dev: list[Example]
    tables: list[Table]
    test: list[Example]


def read_tables(path: Path, tokenizer: Tokenizer, end: int) -> list[Table]:
    """The tables of a file that have a short enough text."""
    texts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            slots = tuple(re.findall(r"([^,\[\]]+?)\[([^\]]*)\]", row["mr"].replace(", ", ",")))
            texts.setdefault(slots, []).append(row["ref"].strip())
    tables = []
    for slots, written in texts.items():
        line = "; ".join(f"{KEYS[field]}: {value}" for field, value in slots)
        prompt = tuple(tokenizer.encode(line + "\n"))
        examples = [
            Example((*prompt, *tokenizer.encode(text), end), len(prompt)) for text in written
        ]
        short = tuple(each for each in examples if len(each.ids) <= LONGEST)
        if short:
            tables.append(Table(slots, prompt, tuple(written), short))
    return tables


def split(
    tables: Sequence[Table], test: Sequence[Table], seed: int, *, dev: int, judged: int
) -> Split:
    """Draw `dev` tables to stop by and `judged` to test on; the rest of `tables` is trained on."""
    rng = Random(seed)
    mixed = rng.sample(tables, len(tables))
    pool = [example for table in mixed[dev:] for example in table.examples]
    rng.shuffle(pool)
    chosen = rng.sample(test, judged)
    return Split(
        pool,
        [rng.choice(table.examples) for table in mixed[:dev]],
        chosen,
        [
            example
            for table in chosen
            for example in rng.sample(table.examples, min(2, len(table.examples)))
        ],
    )


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """Each table with the text of another; no table may have half of the examples."""
    one_by_one = sorted(examples, key=lambda each: each.ids[: each.prompt])
    half = len(one_by_one) // 2
    return [
        Example((*one.ids[: one.prompt], *other.ids[other.prompt :]), one.prompt)
        for one, other in zip(one_by_one, one_by_one[half:] + one_by_one[:half], strict=True)
    ]


def coverage(texts: Sequence[str], tables: Sequence[Table]) -> float:
    """Share of the tables' values that stand in the texts word for word, in any case.

    "yes" and "no" are left out: no text says them that way.
    """
    found = [
        value.casefold() in text.casefold()
        for text, table in zip(texts, tables, strict=True)
        for field, value in table.slots
        if field != "familyFriendly"
    ]
    return sum(found) / len(found)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 of 0 to 100 (Papineni et al. 2002), words and marks in lower case, unsmoothed.

        BLEU = min(1, exp(1 - r / c)) * (p1 p2 p3 p4)^(1/4)

    p_n: share of n-grams that are in a reference, each counted at most as often as in the reference
    that has most of it; c: words written; r: words of each text's nearest reference in length.
    """
    right, made, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for text, others in zip(texts, references, strict=True):
        words, sides = _words(text), [_words(other) for other in others]
        ours += len(words)
        theirs += min((abs(len(side) - len(words)), len(side)) for side in sides)[1]
        for n in range(4):
            grams = _grams(words, n + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for side in sides:
                most |= _grams(side, n + 1)
            right[n] += (grams & most).total()
            made[n] += grams.total()
    if not all(right):
        return 0.0
    precision = sum(math.log(a / b) for a, b in zip(right, made, strict=True)) / 4
    return 100 * math.exp(min(0.0, 1 - theirs / ours) + precision)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
