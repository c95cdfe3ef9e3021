"""What happened within the last minute, in bounded memory."""

from __future__ import annotations

import math
from collections import deque

SPAN = 60
"""Seconds that a window looks back at least; at most one more."""


class MinuteWindow:
    """A sliding window: the sum of what was added within the last minute.

    It is kept by whole seconds, so what it holds is bounded by 61 numbers, and a sum is forgotten
    only when its whole second is a minute old: no 60 seconds ever hold more than `total` said.
    Moments are seconds of one clock and never go back.
    """

    __slots__ = ("_sums", "_total")

    def __init__(self) -> None:
        self._sums: deque[tuple[int, int]] = deque()  # (second, sum), oldest first
        self._total = 0

    def add(self, now: float, amount: int) -> None:
        """Something happened. Amortised O(1)."""
        self._forget(now)
        second = math.floor(now)
        self._total += amount
        if self._sums and self._sums[-1][0] == second:
            amount += self._sums.pop()[1]
        self._sums.append((second, amount))

    def total(self, now: float) -> int:
        """The sum of the last minute. Amortised O(1)."""
        self._forget(now)
        return self._total

    def wait(self, now: float, amount: int) -> float:
        """Seconds until the sum has fallen by `amount`, if nothing is added; O(61).

        0 if `amount` is not above 0, infinite if it is more than the sum.
        """
        self._forget(now)
        if amount <= 0:
            return 0.0
        for second, much in self._sums:
            amount -= much
            if amount <= 0:
                return second + SPAN + 1 - now
        return math.inf

    def rate(self, now: float) -> float:
        """The sum per second since the oldest of it; 0 where there is none."""
        self._forget(now)
        return self._total / max(1.0, now - self._sums[0][0]) if self._sums else 0.0

    def _forget(self, now: float) -> None:
        while self._sums and now >= self._sums[0][0] + SPAN + 1:
            self._total -= self._sums.popleft()[1]
