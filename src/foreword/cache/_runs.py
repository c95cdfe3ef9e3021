"""Runs of pool slots, and which pages they own.

The pool is a row of slots, one per token; `page_size` consecutive slots are a page, the unit in
which memory is given out. A node's tokens lie in *runs* of consecutive slots.

**Who owns a page.** A page is filled from its first slot on, without holes, by nodes along one
downward path: each filler starts right behind its parent's last slot. Whoever holds the page's
*first* slot owns it, and the page is freed when that slot is given up. Nothing else has to be
recorded: splitting a node inside a page leaves the page with the upper half (it holds the first
slot), and the lower half only borrows, safely, because a parent outlives its children. Whoever
fills last may fill on. Hence every run of a node but its last ends on a page boundary, and every
run but its first starts on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """Consecutive pool slots `[start, start + length)`."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """One past the last slot."""
        return self.start + self.length


class PageRange(NamedTuple):
    """Consecutive pages `[start, start + length)`."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """One past the last page."""
        return self.start + self.length


def first_slots(start: int, length: int, page_size: int) -> int:
    """How many pages have their first slot in `[start, start + length)`."""
    return -(-(start + length) // page_size) + (-start // page_size)


def owned_pages(runs: Iterable[Run], page_size: int) -> int:
    """How many pages belong to the holder of `runs`."""
    return sum(first_slots(run.start, run.length, page_size) for run in runs)


def owned_ranges(runs: Iterable[Run], page_size: int) -> list[PageRange]:
    """The pages that belong to the holder of `runs`."""
    ranges = []
    for run in runs:
        pages = first_slots(run.start, run.length, page_size)
        if pages:
            ranges.append(PageRange(-(-run.start // page_size), pages))
    return ranges


def slice_runs(runs: Sequence[Run], begin: int, end: int) -> list[Run]:
    """The slots of tokens `begin` to `end` of the sequence that `runs` hold. Costs O(runs)."""
    pieces = []
    base = 0
    for run in runs:
        low = max(begin - base, 0)
        high = min(end - base, run.length)
        if low < high:
            pieces.append(Run(run.start + low, high - low))
        base += run.length
    return pieces


def join_runs(runs: list[Run], more: Iterable[Run]) -> None:
    """Append `more` to `runs` in place; what lies side by side becomes one run."""
    for run in more:
        if runs and runs[-1].end == run.start:
            runs[-1] = Run(runs[-1].start, runs[-1].length + run.length)
        else:
            runs.append(run)
