"""A heap of things whose rank changes while they are in it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LazyHeap(Generic[T]):
    """Finds the item of the smallest rank.

    Push an item again whenever its rank may have become smaller. A rank that became larger needs
    nothing: it is looked at again when the item comes to the top.

    Args:
        rank: an item's rank now, or None if it has none and is to be dropped.
    """

    def __init__(self, rank: Callable[[T], tuple[Any, ...] | None]) -> None:
        self._rank = rank
        self._heap: list[tuple[tuple[Any, ...], int, T]] = []
        self._live: dict[T, int] = {}  # each item's one entry that counts, by serial number
        self._serial = count()
        self._limit = 64  # entries, stale ones among them

    def push(self, item: T) -> None:
        """Put an item in, or tell that its rank is smaller now. Costs O(log n)."""
        rank = self._rank(item)
        if rank is None:
            return
        serial = next(self._serial)
        self._live[item] = serial
        heapq.heappush(self._heap, (rank, serial, item))
        if len(self._heap) > self._limit:
            self._sweep()

    def top(self) -> T | None:
        """The item of the smallest rank; None if there is none. Costs O(log n) per stale entry."""
        while self._heap:
            rank, serial, item = self._heap[0]
            if self._live.get(item) != serial:
                heapq.heappop(self._heap)
                continue
            now = self._rank(item)
            if now == rank:
                return item
            if now is None:
                heapq.heappop(self._heap)
                del self._live[item]
            else:
                heapq.heapreplace(self._heap, (now, serial, item))
        return None

    def _sweep(self) -> None:
        """Drop what is stale. So rarely that it costs a push nothing on average."""
        items = [item for rank, serial, item in self._heap if self._live.get(item) == serial]
        ranks = {item: rank for item in items if (rank := self._rank(item)) is not None}
        self._live = {item: self._live[item] for item in ranks}
        self._heap = [(rank, self._live[item], item) for item, rank in ranks.items()]
        heapq.heapify(self._heap)
        self._limit = 2 * len(self._heap) + 64
