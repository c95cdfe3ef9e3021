"""Depth first: those in line in the order of a walk through the tree of their prompts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable
from typing import Any, NamedTuple

from foreword._paths import common_prefix
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._path_tree import PathNode, PathTree, as_list
from foreword.scheduling._policy import Candidate, Door


class _Node(PathNode):
    """A node whose children are in order.

    Attributes:
        branches: the first elements of its children, ascending.
        ids: the candidates that end here, ascending.
    """

    __slots__ = ("branches", "ids")

    def __init__(self, parent: Any, edge: list[int], end: int) -> None:
        super().__init__(parent, edge, end)
        self.branches: list[int] = []
        self.ids: list[int] = []


class _Place(NamedTuple):
    """Where the walk stands: behind this candidate, whether it is still in the tree or not."""

    scope: int
    path: list[int]
    id: int


class DepthFirst(LinePolicy):
    """Next after the one admitted last, in depth-first order; after the last of all the first.

    So a shared prefix is computed when the walk enters its subtree and is used by everybody below
    before the walk moves on: least-recently-used eviction then loses nothing that is needed again
    as long as the cache holds one path besides those running. It is the order that batch planners
    are measured against (arXiv 2412.03594, arXiv 2411.16102).

    A prompt comes before its continuations, children come in the order of their first element,
    equal prompts in that of arrival, scopes in that of their first request. Requests that come
    during the walk find their place in it, ahead of the walk or behind: whoever is behind waits for
    the next round, so nobody waits for more than one round and its arrivals ahead. Whoever finds no
    room keeps everybody else waiting. An admission costs O(n + d log line) for a prompt of `n`
    elements through `d` nodes of the tree of those in line.
    """

    name = "dfs"

    def __init__(self) -> None:
        super().__init__()
        self._tree = _OrderedTree()
        self._nodes: dict[int, _Node] = {}
        self._last: _Place | None = None

    def _enter(self, candidate: Candidate) -> None:
        self._nodes[candidate.id] = self._tree.add(candidate)

    def _leave(self, candidate: Candidate) -> None:
        self._tree.remove(candidate, self._nodes.pop(candidate.id))

    def _serve(self, door: Door) -> None:
        while self._line and door.seats:
            candidate = self._line[self._tree.after(self._last)]
            if door.offer(candidate) is None:
                return
            # A copy, for a path may grow once its candidate runs.
            self._last = _Place(
                self._tree.numbers[candidate.scope], list(candidate.path), candidate.id
            )
            self._admitted(candidate)


class _OrderedTree(PathTree[_Node]):
    """The paths in line, in order. Scopes are numbered as they come."""

    def __init__(self) -> None:
        super().__init__(_Node)
        self.numbers: dict[Hashable, int] = {}
        self._scopes: list[tuple[int, _Node]] = []  # ascending
        self._next_number = 0

    def add(self, candidate: Candidate) -> _Node:
        node = self.place(candidate.scope, as_list(candidate.path))
        insort(node.ids, candidate.id)
        if candidate.scope not in self.numbers:
            self.numbers[candidate.scope] = self._next_number
            self._scopes.append((self._next_number, self.roots[candidate.scope]))
            self._next_number += 1
        return node

    def remove(self, candidate: Candidate, node: _Node) -> None:
        del node.ids[bisect_left(node.ids, candidate.id)]
        self.displace(candidate.scope, node)
        if candidate.scope not in self.roots:
            del self._scopes[self._position(self.numbers.pop(candidate.scope))]

    def after(self, place: _Place | None) -> int:
        """The id of the candidate next in the walk; the tree must not be empty. O(n + d log)."""
        start = 0
        if place is not None:
            start = self._position(place.scope)
            if start < len(self._scopes) and self._scopes[start][0] == place.scope:
                found = _after(self._scopes[start][1], place)
                if found is not None:
                    return found
                start += 1
        return _first(self._scopes[start % len(self._scopes)][1])

    def _position(self, number: int) -> int:
        return bisect_left(self._scopes, number, key=lambda scope: scope[0])

    def _linked(self, parent: _Node, element: int) -> None:
        insort(parent.branches, element)

    def _unlinked(self, parent: _Node, element: int) -> None:
        del parent.branches[bisect_left(parent.branches, element)]

    def _split(self, upper: _Node, lower: _Node) -> None:
        upper.branches = [lower.edge[0]]


def _first(node: _Node) -> int:
    """The first candidate of a subtree."""
    while not node.ids:
        node = node.children[node.branches[0]]
    return node.ids[0]


def _after(root: _Node, place: _Place) -> int | None:
    """The first candidate of a tree that comes after a place; None behind the last."""
    path = place.path
    trail: list[tuple[_Node, int]] = []  # where the walk would turn to an elder branch
    node = root
    while node.end < len(path):
        at = node.end
        trail.append((node, path[at]))
        child: _Node | None = node.children.get(path[at])
        if child is None:
            break
        common = common_prefix(child.edge, path, at)
        if common < len(child.edge):
            if at + common == len(path) or child.edge[common] > path[at + common]:
                return _first(child)
            break
        node = child
    else:
        later = bisect_right(node.ids, place.id)
        if later < len(node.ids):
            return node.ids[later]
        if node.branches:
            return _first(node.children[node.branches[0]])
    while trail:
        node, element = trail.pop()
        branch = bisect_right(node.branches, element)
        if branch < len(node.branches):
            return _first(node.children[node.branches[branch]])
    return None
