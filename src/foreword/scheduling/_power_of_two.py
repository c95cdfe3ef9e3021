"""The better of two."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

from foreword.scheduling._policy import Candidate
from foreword.scheduling._router import QueueRouter
from foreword.scheduling._settings import whole


class PowerOfTwo(QueueRouter):
    """Two workers at random, and of these the one with the shorter queue.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.

    Args:
        seed: of the random choice.
    """

    name = "power-of-two"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(whole("seed", seed))

    def _choose(self, candidate: Candidate, among: list[Hashable]) -> Hashable:
        return self.least_loaded(self._random.sample(among, min(2, len(among))))
