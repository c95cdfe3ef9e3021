"""Leases: the right to rely on a path of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreword.cache._node import Node

if TYPE_CHECKING:
    from foreword.cache._tree import PrefixTree


class Lease:
    """Pins one path of the tree, from its namespace's root to the end of `node`.

    Made by `PrefixTree.acquire` and `fork`, valid until `release`. While it is open no token of its
    path leaves the tree or changes its slot. Leases are equal only to themselves, and hashable.
    """

    __slots__ = ("_node", "_reach", "tree")

    def __init__(self, tree: PrefixTree, node: Node, reach: int) -> None:
        self.tree = tree
        self._node: Node | None = node
        self._reach = reach  # the length its holder expects to grow to

    def __repr__(self) -> str:
        return "Lease(closed)" if self._node is None else f"Lease(length={self.length})"

    @property
    def node(self) -> Node:
        """The node at whose end this lease ends; an empty lease ends at its namespace's root."""
        if self._node is None:
            raise ValueError("this lease is released: it holds no node; acquire its tokens again")
        return self._node

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.node.end

    @property
    def tokens(self) -> list[int]:
        """A copy of all its tokens. Costs O(length)."""
        nodes = []
        node: Node | None = self.node
        while node is not None:
            nodes.append(node)
            node = node.parent
        return [token for node in reversed(nodes) for token in node.tokens]

    @property
    def closed(self) -> bool:
        """Whether it has been released."""
        return self._node is None
