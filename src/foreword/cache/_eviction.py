"""Who leaves first: unpinned leaves, least recently used before others."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from foreword.cache._node import Node


class EvictionQueue:
    """A heap of the nodes that may leave, ordered by when they were last used.

    Entries are never searched for: one whose node has since been pinned, given a child, used again
    or dropped is skipped when it comes up, and all such entries are swept out when they outnumber
    the others. `push` and `pop` cost O(log n), amortised.
    """

    __slots__ = ("_heap", "_limit", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Node]] = []
        self._serial = 0  # breaks ties, so that nodes are never compared
        self._limit = 64

    def push(self, node: Node) -> None:
        """Enter a node that may leave from now on."""
        self._serial += 1
        heappush(self._heap, (node.last_used, self._serial, node))
        if len(self._heap) > self._limit:
            self._heap = [entry for entry in self._heap if _holds(entry)]
            heapify(self._heap)
            self._limit = max(64, 2 * len(self._heap))

    def pop(self) -> Node | None:
        """Take out the unpinned leaf that was used longest ago; None if there is none."""
        while self._heap:
            entry = heappop(self._heap)
            if _holds(entry):
                return entry[2]
        return None

    def __iter__(self) -> Iterator[Node]:
        """The nodes that may leave, in no order."""
        return (entry[2] for entry in self._heap if _holds(entry))

    def __len__(self) -> int:
        """Entries held, outdated ones among them."""
        return len(self._heap)


def _holds(entry: tuple[int, int, Node]) -> bool:
    used, _, node = entry
    unchanged = node.parent is not None and node.last_used == used
    return unchanged and not node.pins and not node.children
