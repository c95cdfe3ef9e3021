"""Random prompts with a known amount in common, and the count of what is distinct in them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_TOKEN = 3
"""Ids below are special tokens in most vocabularies; prompts leave them out."""


class TokenSource:
    """Random token ids of one vocabulary; the same seed gives the same ids in the same order."""

    def __init__(self, vocab: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._vocab = vocab

    def tokens(self, count: int) -> list[int]:
        """The next `count` ids."""
        return [self._random.randrange(FIRST_TOKEN, self._vocab) for _ in range(count)]

    def behind(self, prefix: list[int], requests: int, suffix: int) -> list[list[int]]:
        """`requests` prompts that begin with `prefix` and end in `suffix` ids of their own."""
        return [prefix + self.tokens(suffix) for _ in range(requests)]


def distinct_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Nodes of the token trie of `texts`: what must be computed if nothing is computed twice.

    In sorted order each text adds what it does not share with the one before it.
    """
    total = 0
    before: Sequence[int] = ()
    for text in sorted(list(text) for text in texts):
        total += len(text) - _common(before, text)
        before = text
    return total


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
