"""What a router believes its workers hold: one trie over path elements for all of them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence

from foreword._errors import ForewordError


class _Node:
    """One element of a path. Its holders are bits; whoever holds it holds its parent too."""

    __slots__ = ("children", "element", "holders", "parent")

    def __init__(self, element: Hashable, parent: _Node | None) -> None:
        self.element = element
        self.parent = parent
        self.children: dict[Hashable, _Node] = {}
        self.holders = 0


class RouterIndex:
    """Which workers hold which prefixes, as far as a router was told.

    A worker's part is bounded: beyond `capacity` elements the least recently inserted leave,
    the last of a path first. That stands in for the evictions that nobody reports; those that are
    reported are cut with `cut`. For a path of `n` elements:

    | verb          | mutates        | costs              | at zero elements        |
    |---------------|----------------|--------------------|-------------------------|
    | `match`       | nothing        | O(n + workers)     | everybody matches 0     |
    | `insert`      | one worker     | O(n)               | does nothing            |
    | `cut`         | one worker     | O(n + what leaves) | does nothing            |
    | `drop`        | one worker     | O(what it holds)   |                         |

    Args:
        capacity: most elements kept per worker.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._roots: dict[Hashable, _Node] = {}
        self._bits: dict[Hashable, int] = {}
        # Oldest first. A parent is never older than what hangs below it, so the first is a leaf.
        self._held: dict[Hashable, OrderedDict[_Node, Hashable]] = {}

    def size(self, worker: Hashable) -> int:
        """Elements that a worker holds; 0 for one nobody knows."""
        return len(self._held.get(worker, ()))

    def match(
        self, scope: Hashable, path: Sequence[Hashable], workers: Collection[Hashable]
    ) -> dict[Hashable, int]:
        """How many leading elements of a path each of these workers holds."""
        asked = {self._bits[worker]: worker for worker in workers if worker in self._bits}
        found = dict.fromkeys(workers, 0)
        left = sum(asked)
        node = self._roots.get(scope)
        for depth, element in enumerate(path):
            node = None if node is None else node.children.get(element)
            still = 0 if node is None else node.holders & left
            if still != left:
                for bit in _each(left & ~still):
                    found[asked[bit]] = depth
                left = still
                if not left:
                    return found
        for bit in _each(left):
            found[asked[bit]] = len(path)
        return found

    def insert(self, worker: Hashable, scope: Hashable, path: Sequence[Hashable]) -> None:
        """A worker holds this path now, and used it last."""
        if not path:
            return
        bit = self._bit_of(worker)
        held = self._held[worker]
        node = self._roots.setdefault(scope, _Node(None, None))
        nodes = []
        for element in path[: self.capacity]:
            child = node.children.get(element)
            if child is None:
                child = node.children[element] = _Node(element, node)
            child.holders |= bit
            nodes.append(child)
            node = child
        for node in reversed(nodes):  # from the leaf up: parents stay younger than children
            held[node] = scope
            held.move_to_end(node)
        while len(held) > self.capacity:
            oldest, its_scope = held.popitem(last=False)
            self._let_go(oldest, bit, its_scope)

    def cut(
        self, worker: Hashable, scope: Hashable, path: Sequence[Hashable], elements: int = 1
    ) -> int:
        """A worker dropped the last `elements` of a path; returns how many left the index.

        Whatever hung below them leaves as well. What the index did not know is let pass.
        """
        bit = self._bits.get(worker)
        node = self._roots.get(scope)
        if bit is None or node is None or not path:
            return 0
        keep = max(0, len(path) - max(1, elements))
        for element in path[: keep + 1]:
            child = node.children.get(element)
            if child is None or not child.holders & bit:
                return 0
            node = child
        below = [node]
        for node in below:  # grows while it is walked: parents before children
            below += [child for child in node.children.values() if child.holders & bit]
        held = self._held[worker]
        for node in reversed(below):
            del held[node]
            self._let_go(node, bit, scope)
        return len(below)

    def drop(self, worker: Hashable) -> None:
        """Forget a worker and all it holds."""
        bit = self._bits.pop(worker, None)
        if bit is not None:
            for node, scope in self._held.pop(worker).items():  # children before parents
                self._let_go(node, bit, scope)

    def check(self) -> None:
        """Verify every invariant from scratch. Costs O(all that is held).

        Raises:
            ForewordError: names the one that is broken.
        """
        seen: dict[Hashable, set[_Node]] = {worker: set() for worker in self._held}
        for scope, root in self._roots.items():
            _require(bool(root.children), f"scope {scope!r} holds nothing and is still there")
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                parent = node.parent
                _require(parent is not None, "a node has no parent")
                assert parent is not None
                _require(parent.children.get(node.element) is node, "a parent lost its child")
                _require(node.holders != 0, "a node is held by nobody")
                _require(
                    parent is root or not node.holders & ~parent.holders,
                    "somebody holds a node and not its parent",
                )
                for worker, bit in self._bits.items():
                    if node.holders & bit:
                        seen[worker].add(node)
                        _require(self._held[worker].get(node) == scope, "a node's scope is wrong")
                stack.extend(node.children.values())
        bits = list(self._bits.values())
        _require(len(set(bits)) == len(bits), "two workers share a bit")
        _require(self._bits.keys() == self._held.keys(), "bits and holdings disagree on workers")
        for worker, held in self._held.items():
            _require(held.keys() == seen[worker], f"worker {worker!r}: order and trie disagree")
            _require(len(held) <= self.capacity, f"worker {worker!r} holds more than it may")
            age = {node: place for place, node in enumerate(held)}
            for node in held:
                above = node.parent
                _require(
                    above is None or age.get(above, math.inf) > age[node],
                    "a parent is older than its child",
                )

    def _bit_of(self, worker: Hashable) -> int:
        bit = self._bits.get(worker)
        if bit is None:
            free = ~sum(self._bits.values())
            bit = self._bits[worker] = free & -free  # the lowest bit that nobody has
            self._held[worker] = OrderedDict()
        return bit

    def _let_go(self, node: _Node, bit: int, scope: Hashable) -> None:
        node.holders &= ~bit
        if not node.holders:
            parent = node.parent
            assert parent is not None
            del parent.children[node.element]
            if parent.parent is None and not parent.children:
                del self._roots[scope]


def _each(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low
        bits &= ~low


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ForewordError(f"router index: {what}")
