"""Authors' texts in nano's tokens, divided as nano's own training divided them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _nano_text import split
from foreword.models import Tokenizer
from foreword.prefixes.methods import Example

AUTHORS = {
    "austen": ("Jane Austen", "gutenberg/austen-*.txt"),
    "chesterton": ("G. K. Chesterton", "gutenberg/chesterton-*.txt"),
    "melville": ("Herman Melville", "gutenberg/melville-*.txt"),
    "milton": ("John Milton", "gutenberg/milton-*.txt"),
    "shakespeare": ("William Shakespeare", "tinyshakespeare.txt"),
    "whitman": ("Walt Whitman", "gutenberg/whitman-*.txt"),
}
"""Folder name: the author's name, and the files."""

DEV = 0.02
"""Share of an author's training tokens, at their end, by which settings are chosen."""


@dataclass(frozen=True)
class Author:
    """One author's tokens.

    Attributes:
        key: as in `AUTHORS`.
        name: for people.
        train: what nano was trained on, without its last `DEV`.
        dev: that last part.
        heldout: the blocks that nano never saw, one per file.
    """

    key: str
    name: str
    train: tuple[int, ...]
    dev: tuple[int, ...]
    heldout: tuple[tuple[int, ...], ...]

    def sample(
        self, count: int, tokens: int, seed: int, *, shuffled: bool = False
    ) -> list[Example]:
        """Windows of the training part, each beginning anywhere.

        `shuffled` draws a window's tokens one by one instead: the author's words without order.
        """
        rng = random.Random(f"{self.key} {seed}")
        starts = (rng.randrange(len(self.train) - tokens) for _ in range(count))
        if shuffled:
            return [Example(tuple(rng.choices(self.train, k=tokens))) for _ in range(count)]
        return [Example(self.train[start : start + tokens]) for start in starts]

    def excerpts(self, count: int, tokens: int) -> list[tuple[int, ...]]:
        """Evenly spaced pieces of the training part, for prompts of the author's own text."""
        step = (len(self.train) - tokens) // count
        return [self.train[i * step : i * step + tokens] for i in range(count)]

    def dev_windows(self, count: int, tokens: int) -> list[Example]:
        """Evenly spaced windows of the dev part."""
        step = max(1, (len(self.dev) - tokens) // count)
        return windows(self.dev, tokens, step)[:count]

    def heldout_windows(self, tokens: int) -> list[Example]:
        """The held-out blocks cut into windows without overlap; a short last one is left out."""
        return [each for block in self.heldout for each in windows(block, tokens, tokens)]


def windows(ids: tuple[int, ...], tokens: int, step: int) -> list[Example]:
    """Windows of so many tokens, one at every step."""
    return [Example(ids[at : at + tokens]) for at in range(0, len(ids) - tokens + 1, step)]


def read_authors(folder: Path, tokenizer: Tokenizer | Any) -> list[Author]:
    """Every author's text below `folder`, the public texts nano was made of."""
    authors = []
    for key, (name, pattern) in AUTHORS.items():
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise SystemExit(f"no {pattern} below {folder}: set FOREWORD_DATA or give --data")
        train: list[int] = []
        heldout = []
        for path in paths:
            sections, block = split(path)
            for section in filter(None, sections):
                train += [*tokenizer.encode(section), 0]
            heldout.append(tuple(tokenizer.encode(block)))
        cut = round(len(train) * (1 - DEV))
        authors.append(Author(key, name, tuple(train[:cut]), tuple(train[cut:]), tuple(heldout)))
    return authors
