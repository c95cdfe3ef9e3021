"""How much requests will write, learned from those that have written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Tally:
    written: float = 0.0  # by all who run or ran, in shares of what each might write
    finished: int = 0


class OutputShare:
    """The mean share of `max_output` that answers take, per group of requests and over all.

    Answers that are not finished count with what they have written so far: those that finish first
    are the short ones, and a mean over them alone would be too low. What was said beforehand counts
    as one answer, and in a group so does the mean over all.

    Args:
        beforehand: the share to expect as long as nothing is known.
    """

    def __init__(self, beforehand: float) -> None:
        self._beforehand = beforehand
        self._all = _Tally()
        self._groups: dict[int, _Tally] = {}

    def regroup(self, groups: Iterable[int]) -> None:
        """Begin anew with these groups; what was learned over all stays."""
        self._groups = {group: _Tally() for group in groups}

    def wrote(self, group: int, share: float) -> None:
        """A request of a group, known or not, wrote this share of what it might write."""
        self._all.written += share
        if group in self._groups:
            self._groups[group].written += share

    def finished(self, group: int) -> None:
        """A request of a group, known or not, came to its end by itself."""
        self._all.finished += 1
        if group in self._groups:
            self._groups[group].finished += 1

    def expected(self, group: int = -1) -> float:
        """The share that a request will write, above 0 and at most 1. Costs O(1)."""
        everybody = _mean(self._beforehand, self._all)
        tally = self._groups.get(group)
        return everybody if tally is None else _mean(everybody, tally)


def _mean(before: float, tally: _Tally) -> float:
    return min(1.0, (before + tally.written) / (1 + tally.finished))
