"""A group of rows with a common prefix: its sizes, and what sharing could gain at most. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

PREFIXES, RESPONSES, GROUPS = (256, 1024, 4096), (64, 256, 512), (2, 4, 8, 16)
CAUSAL, BACK = 0.5, 2.5
"""Pairs that a causal mask leaves, and the products of attention's way back over those of the way
there: five beside two, for the scores are computed again."""


@dataclass(frozen=True)
class Cell:
    """`group` rows of `prefix` common tokens and up to `response` of their own."""

    prefix: int
    response: int
    group: int
    unequal: bool = False

    @property
    def name(self) -> str:
        return f"{self.prefix},{self.response},{self.group}" + (",unequal" if self.unequal else "")

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response: all `response`, or evenly spread from a quarter of it."""
        if not self.unequal:
            return [self.response] * self.group
        least, steps = self.response // 4, max(self.group - 1, 1)
        return [least + (self.response - least) * i // steps for i in range(self.group)]

    @property
    def columns(self) -> int:
        return self.prefix + self.response

    @property
    def repeated(self) -> int:
        """Tokens of all rows, without padding."""
        return self.group * self.prefix + sum(self.lengths)

    def rows(self, vocab: int, seed: int = 1) -> list[list[int]]:
        """Random tokens; no two responses begin alike where the vocabulary is as large as that."""
        lot = random.Random(seed)
        head = [lot.randrange(vocab) for _ in range(self.prefix)]
        firsts = lot.sample(range(vocab), self.group)
        return [
            [*head, first, *(lot.randrange(vocab) for _ in range(length - 1))]
            for first, length in zip(firsts, self.lengths, strict=True)
        ]

    def token_bound(self) -> float:
        """Tokens of the rows over tokens with the prefix counted once: G(P+R) / (P+GR)."""
        return self.repeated / (self.prefix + sum(self.lengths))

    def work_bound(self, token: int, pair: int) -> float:
        """The same of all products, attention's included: what a token and a query-key pair cost.

        Sharing leaves out the prefix's own pairs, but every response still looks at the prefix.

        Args:
            token: multiply-adds of a token outside attention, forward.
            pair: multiply-adds of a query-key pair, forward.
        """
        there_and_back = (1 + BACK) * pair
        rows = [self.prefix + length for length in self.lengths]
        once = sum(CAUSAL * n * n + n * self.prefix for n in self.lengths)
        repeated = 3 * token * self.repeated + there_and_back * sum(CAUSAL * n * n for n in rows)
        shared = 3 * token * (self.prefix + sum(self.lengths)) + there_and_back * (
            CAUSAL * self.prefix**2 + once
        )
        return repeated / shared


def grid(responses: Sequence[int] = RESPONSES, groups: Sequence[int] = GROUPS) -> list[Cell]:
    """Prefix x response x group."""
    return [Cell(p, r, g) for p in PREFIXES for r in responses for g in groups]


def read_cell(text: str) -> Cell:
    """`prefix,response,group[,unequal]`."""
    numbers = text.removesuffix(",unequal").split(",")
    if len(numbers) != 3 or not all(n.isdigit() and int(n) > 0 for n in numbers):
        raise ValueError(f"{text!r} is no cell: prefix,response,group[,unequal]")
    prefix, response, group = map(int, numbers)
    return Cell(prefix, response, group, text.endswith(",unequal"))
