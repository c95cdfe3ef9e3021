"""A door for tests: a small prefix cache in memory, with seats, a capacity and LRU eviction.

One trie node per path element. Nothing here is clever, so what a test sees is easy to work out.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from itertools import count

from foreword.scheduling import Candidate


class FakeNode:
    """One path element in the cache."""

    def __init__(self, parent: FakeNode | None, element: int) -> None:
        self.parent = parent
        self.element = element
        self.children: dict[int, FakeNode] = {}
        self.pins = 0
        self.last_used = 0


class FakeHold:
    """A pinned prefix. `released` tells a test whether it was let go."""

    def __init__(self, door: FakeDoor, nodes: Sequence[FakeNode]) -> None:
        self._door = door
        self._nodes = nodes
        self.released = False
        door._pin(nodes)

    def release(self) -> None:
        assert not self.released, "a hold is released once"
        self.released = True
        self._door._unpin(self._nodes)


class FakeDoor:
    """The `Door` protocol over a trie, and what a test needs to play the engine behind it.

    Args:
        unit: tokens that one path element stands for; each takes as much capacity.
        capacity: tokens the cache can hold.
        seats: how many may run at once.

    Attributes:
        offers: every offer made: the candidate's id and what `offer` returned.
        admitted: the ids admitted, in order.
        computed: all tokens that had to be computed.
        matches: how often `match` was called.
        runners: the running candidates by id.
    """

    def __init__(self, unit: int = 1, capacity: int = 1_000_000, seats: int = 1_000_000) -> None:
        self.unit = unit
        self.capacity = capacity
        self.most_seats = seats
        self.offers: list[tuple[int, int | None]] = []
        self.admitted: list[int] = []
        self.computed = 0
        self.matches = 0
        self.runners: dict[int, Candidate] = {}
        self._roots: dict[Hashable, FakeNode] = {}
        self._paths: dict[int, list[FakeNode]] = {}
        self._written: dict[int, int] = {}
        self._held = 0  # elements in the trie
        self._pinned = 0  # those that somebody uses
        self._old: list[tuple[int, int, FakeNode]] = []  # leaves, perhaps; verified when popped
        self._clock = 0
        self._serial = count()

    # What a policy sees

    @property
    def seats(self) -> int:
        return self.most_seats - len(self.runners)

    @property
    def running(self) -> int:
        return len(self.runners)

    @property
    def available(self) -> int:
        return self.capacity - self._pinned * self.unit - sum(self._written.values())

    def match(self, candidate: Candidate) -> int:
        self.matches += 1
        return len(self._walk(candidate.scope, candidate.path))

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        assert candidate.id not in self.runners, "offered while it runs"
        missing = self._admit(candidate, spare)
        self.offers.append((candidate.id, missing))
        return missing

    def hold(self, candidate: Candidate, elements: int) -> FakeHold:
        return FakeHold(self, self._paths[candidate.id][:elements])

    # What a test does

    def keep(self, path: Sequence[int], scope: Hashable = "") -> None:
        """Leave a path in the cache that nobody uses."""
        self._unpin(self._pin(self._make(scope, path)))

    def write(self, id: int, tokens: int) -> bool:
        """A runner writes tokens, which nobody shares; False if there is no room for them."""
        if tokens > self.available:
            return False
        self._written[id] = self._written.get(id, 0) + tokens
        self._make_room()
        return True

    def leave(self, id: int) -> Candidate:
        """A runner leaves; its path stays in the cache, what it wrote does not."""
        self._unpin(self._paths.pop(id))
        self._written.pop(id, None)
        return self.runners.pop(id)

    def evict(self, elements: int) -> int:
        """Drop up to that many unused elements, least recently used leaves first."""
        dropped = 0
        while dropped < elements and (leaf := self._oldest()) is not None:
            assert leaf.parent is not None
            del leaf.parent.children[leaf.element]
            self._held -= 1
            self._age(leaf.parent)
            dropped += 1
        return dropped

    def held(self, path: Sequence[int], scope: Hashable = "") -> int:
        """How many leading elements are in the cache; not counted in `matches`."""
        return len(self._walk(scope, path))

    def _admit(self, candidate: Candidate, spare: int) -> int | None:
        if self.seats < 1:
            return None
        found = self._walk(candidate.scope, candidate.path)
        missing = len(candidate.path) - len(found)
        unpinned = sum(not node.pins for node in found)
        room = self.available - unpinned * self.unit
        if missing * self.unit + (spare if self.runners else 0) > room:
            assert self.runners or self._pinned, "a candidate larger than the whole cache"
            return None
        self._paths[candidate.id] = self._pin(self._make(candidate.scope, candidate.path))
        self.runners[candidate.id] = candidate
        self.admitted.append(candidate.id)
        self._make_room()
        tokens = candidate.tokens - min(candidate.tokens, len(found) * self.unit)
        self.computed += tokens
        return tokens

    def _walk(self, scope: Hashable, path: Iterable[int]) -> list[FakeNode]:
        nodes: list[FakeNode] = []
        node = self._roots.get(scope)
        for element in path:
            if node is None or (node := node.children.get(element)) is None:
                break
            nodes.append(node)
        return nodes

    def _make(self, scope: Hashable, path: Sequence[int]) -> list[FakeNode]:
        node = self._roots.setdefault(scope, FakeNode(None, -1))
        nodes = []
        for element in path:
            if element not in node.children:
                node.children[element] = FakeNode(node, element)
                self._held += 1
            node = node.children[element]
            nodes.append(node)
        return nodes

    def _pin(self, nodes: Sequence[FakeNode]) -> list[FakeNode]:
        for node in nodes:
            self._pinned += not node.pins
            node.pins += 1
        return list(nodes)

    def _unpin(self, nodes: Sequence[FakeNode]) -> None:
        self._clock += 1
        for node in reversed(nodes):
            node.pins -= 1
            self._pinned -= not node.pins
            node.last_used = self._clock
            self._age(node)
        self._make_room()

    def _make_room(self) -> None:
        over = self._held * self.unit + sum(self._written.values()) - self.capacity
        if over > 0:
            self.evict(-(-over // self.unit))

    def _age(self, node: FakeNode) -> None:
        if not node.children and not node.pins and node.parent is not None:
            heapq.heappush(self._old, (node.last_used, next(self._serial), node))

    def _oldest(self) -> FakeNode | None:
        while self._old:
            last_used, _, node = heapq.heappop(self._old)
            in_use = node.children or node.pins or node.last_used != last_used
            home = node.parent
            if not in_use and home is not None and home.children.get(node.element) is node:
                return node
        return None


def candidate(
    id: int,
    path: Sequence[int],
    *,
    tenant: str = "",
    scope: Hashable = "",
    tokens: int | None = None,
    max_output: int = 16,
    preempted: bool = False,
) -> Candidate:
    """A candidate whose every element stands for one token, unless `tokens` says otherwise."""
    length = len(path) if tokens is None else tokens
    return Candidate(id, tuple(path), length, max_output, tenant, scope, preempted)
