"""A radix tree over the paths of those in line; other files say what its nodes carry."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

from foreword._paths import common_prefix


class PathNode:
    """A run of elements that all paths below it have in common.

    Attributes:
        edge: the run; it ends `end` elements from the root. Empty for a root.
        children: by the first element of their edges.
        own: how many paths end here.
    """

    __slots__ = ("children", "edge", "end", "own", "parent")

    def __init__(self, parent: Any, edge: list[int], end: int) -> None:
        self.parent = parent
        self.edge = edge
        self.end = end
        self.children: dict[int, Any] = {}
        self.own = 0

    @property
    def start(self) -> int:
        return self.end - len(self.edge)


N = TypeVar("N", bound=PathNode)


class PathTree(Generic[N]):
    """One radix tree per scope. A node has paths that end there, or two children, or is a root.

    Edges are copies, so nobody minds what becomes of a path that has left. Costs are for a path of
    `n` elements through `d` nodes.

    Args:
        kind: the class of its nodes.
    """

    def __init__(self, kind: type[N]) -> None:
        self._kind = kind
        self.roots: dict[Hashable, N] = {}

    def place(self, scope: Hashable, path: list[int]) -> N:
        """Count a path at the node it ends at, which is made if it is not there. O(n + d)."""
        node = self.roots.get(scope)
        if node is None:
            node = self.roots[scope] = self._kind(None, [], 0)
        while node.end < len(path):
            at = node.end
            child: N | None = node.children.get(path[at])
            if child is None:
                child = self._kind(node, path[at:], len(path))
                node.children[path[at]] = child
                self._linked(node, path[at])
            common = common_prefix(child.edge, path, at)
            node = child if common == len(child.edge) else self._cut(child, common)
        node.own += 1
        return node

    def displace(self, scope: Hashable, node: N) -> None:
        """Count a path less at its node, and drop what nobody needs any more. O(edges dropped)."""
        node.own -= 1
        while not node.own and not node.children:
            if node.parent is None:
                del self.roots[scope]
                return
            element = node.edge[0]
            node = node.parent
            del node.children[element]
            self._unlinked(node, element)
        if not node.own and node.parent is not None and len(node.children) == 1:
            (lower,) = node.children.values()
            lower.edge = node.edge + lower.edge
            lower.parent = node.parent
            lower.parent.children[lower.edge[0]] = lower
            self._joined(node, lower)

    def _cut(self, lower: N, at: int) -> N:
        """Cut a node's edge after `at` elements; returns the new node above it."""
        upper = self._kind(lower.parent, lower.edge[:at], lower.start + at)
        upper.parent.children[upper.edge[0]] = upper
        lower.edge = lower.edge[at:]
        lower.parent = upper
        upper.children[lower.edge[0]] = lower
        self._split(upper, lower)
        return upper

    def _linked(self, parent: N, element: int) -> None:
        """A leaf was made below `parent`."""

    def _unlinked(self, parent: N, element: int) -> None:
        """The leaf below `parent` is gone."""

    def _split(self, upper: N, lower: N) -> None:
        """`lower` was cut in two; `upper` is the new node, its parent."""

    def _joined(self, upper: N, lower: N) -> None:
        """`lower` took over the edge of `upper`, which is gone."""


def as_list(path: Sequence[int]) -> list[int]:
    """A path as a list, itself if it is one."""
    return path if type(path) is list else list(path)
