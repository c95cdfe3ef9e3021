"""The waiting tree: who of those in line finds most of its prompt in the cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from foreword._paths import common_prefix
from foreword.scheduling._lazy_heap import LazyHeap
from foreword.scheduling._path_tree import PathNode, PathTree, as_list
from foreword.scheduling._policy import Candidate

Match = Callable[[Candidate], int]


class _Node(PathNode):
    """A node that knows who is first below it and how far the cache may reach.

    Attributes:
        reach: of the elements on the way to this node's end the cache holds so many at most; -1 if
            it holds none of the node's own.
        ids: per group, a heap of candidates here and below: those that end here, and the first of
            each child. Some of them may have left the line.
        first: per group, the earliest candidate here and below.
    """

    __slots__ = ("first", "ids", "reach")

    def __init__(self, parent: Any, edge: list[int], end: int) -> None:
        super().__init__(parent, edge, end)
        self.reach = -1 if edge else 0
        self.ids: dict[str, list[int]] = {}
        self.first: dict[str, int] = {}


class _Waiting(NamedTuple):
    candidate: Candidate
    node: _Node
    group: str


class WaitingTree(PathTree[_Node]):
    """A radix tree over the paths in line, with what is known of the cache written into it.

    Its question is `best`: the candidate with the longest match, the earliest of several. Matching
    all of them each time would cost O(line); here every node keeps an upper bound of how far the
    cache reaches into it. Those bounds grow when somebody is admitted (`cached`), and only then;
    eviction makes them too large, which is found out when they come to the top. So `best` asks the
    door about one candidate, and about one more per new candidate and per bound that was wrong.

    Candidates stand in groups; a closed group is passed over, whatever its size. Costs are for a
    path of `n` elements through `d` nodes.
    """

    def __init__(self) -> None:
        super().__init__(_Node)
        self._waiting: dict[int, _Waiting] = {}
        self._sizes: dict[str, int] = {}
        self._unmatched: list[int] = []
        self._closed: set[str] = set()
        self._nodes: dict[str, LazyHeap[_Node]] = {}  # per group, those the cache reaches
        self._groups: LazyHeap[str] = LazyHeap(self._rank_group)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: int) -> bool:
        return id in self._waiting

    @property
    def groups(self) -> set[str]:
        """The groups that have somebody in line, open or closed. A copy."""
        return set(self._sizes)

    def add(self, candidate: Candidate, group: str = "") -> None:
        """Take a candidate in. It is matched at the next `best`. Costs O(n + d log line)."""
        if group not in self._sizes:
            self._sizes[group] = 0
            self._nodes[group] = LazyHeap(lambda node: _rank(node, group))
        self._sizes[group] += 1
        node = self.place(candidate.scope, as_list(candidate.path))
        self._waiting[candidate.id] = _Waiting(candidate, node, group)
        self._unmatched.append(candidate.id)
        if len(self._unmatched) > 2 * len(self._waiting) + 64:  # nobody asked for the best lately
            self._unmatched = [id for id in self._unmatched if id in self._waiting]
        at: _Node | None = node
        while at is not None:
            heappush(at.ids.setdefault(group, []), candidate.id)
            if at.first.get(group, candidate.id + 1) <= candidate.id:
                break
            at.first[group] = candidate.id
            self._push(at, group)
            at = at.parent

    def remove(self, id: int) -> None:
        """Let a candidate go. Costs O(d log line) at most, O(edge) where two nodes become one."""
        candidate, node, group = self._waiting.pop(id)
        at: _Node | None = node
        while at is not None and at.first[group] == id:
            ids = at.ids[group]
            while ids and ids[0] not in self._waiting:
                heappop(ids)
            if ids:
                at.first[group] = ids[0]
                if at.parent is not None:
                    heappush(at.parent.ids[group], ids[0])
            else:
                del at.first[group], at.ids[group]
            at = at.parent
        self.displace(candidate.scope, node)
        self._sizes[group] -= 1
        if not self._sizes[group]:
            del self._sizes[group], self._nodes[group]

    def cached(self, scope: Hashable, path: Sequence[int], elements: int | None = None) -> None:
        """Note that the cache holds the first `elements` of a path, all by default. O(n + d)."""
        path = as_list(path)
        upto = len(path) if elements is None else elements
        node = self.roots.get(scope)
        while node is not None and node.end < upto:
            at = node.end
            node = node.children.get(path[at])
            if node is None:
                return
            common = common_prefix(node.edge, path, at)
            reach = min(at + common, upto)
            if reach > node.reach:
                node.reach = reach
                for group in node.first:
                    self._push(node, group)
            if common < len(node.edge):
                return

    def close(self, group: str) -> None:
        """Pass a group over from now on, whether it has members or not. O(1)."""
        self._closed.add(group)

    def open(self, group: str) -> None:
        """Consider a group again. Groups are open at first. O(log groups)."""
        self._closed.discard(group)
        self._groups.push(group)

    def best(self, match: Match) -> Candidate | None:
        """The open groups' candidate with the longest match, the earliest of several.

        Args:
            match: how many leading elements of a candidate the cache holds (`Door.match`).

        Returns:
            None if no open group has members. Valid until the cache changes.
        """
        for id in self._unmatched:
            if id in self._waiting:
                candidate = self._waiting[id].candidate
                self.cached(candidate.scope, candidate.path, match(candidate))
        self._unmatched.clear()
        while (group := self._groups.top()) is not None:
            node = self._nodes[group].top()
            assert node is not None
            candidate = self._waiting[node.first[group]].candidate
            found = match(candidate)
            if found == node.reach:
                return candidate
            if found > node.reach:  # somebody else filled the cache
                self.cached(candidate.scope, candidate.path, found)
            else:
                _lower(node, found)
        return None

    def _split(self, upper: _Node, lower: _Node) -> None:
        upper.first = dict(lower.first)
        upper.ids = {group: [id] for group, id in lower.first.items()}
        upper.reach = min(lower.reach, upper.end)
        if lower.reach <= upper.end:
            lower.reach = -1
        for group in upper.first:
            self._push(upper, group)

    def _joined(self, upper: _Node, lower: _Node) -> None:
        lower.reach = max(lower.reach, upper.reach)
        upper.reach = -1
        for group in lower.first:
            self._push(lower, group)

    def _push(self, node: _Node, group: str) -> None:
        """The node's rank in a group may have become better."""
        if node.reach >= 0:
            self._nodes[group].push(node)
            self._groups.push(group)

    def _rank_group(self, group: str) -> tuple[int, int] | None:
        if group in self._closed or group not in self._nodes:
            return None
        node = self._nodes[group].top()
        return None if node is None else _rank(node, group)


def _rank(node: _Node, group: str) -> tuple[int, int] | None:
    """Further into the cache first, then the earlier candidate; None for a node not reached."""
    first = node.first.get(group)
    return None if node.reach < 0 or first is None else (-node.reach, first)


def _lower(node: _Node, reach: int) -> None:
    """On the way down to a node's end the cache turned out to hold `reach` elements."""
    at: _Node | None = node
    while at is not None and at.reach > reach:
        at.reach = reach if reach > at.start else -1
        at = at.parent
