"""What of a prefix tree fits on one page: the nodes that matter most, with names that stay."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from itertools import count, islice
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from foreword.cache import Namespace, Node, PrefixTree

HEAD = 32
"""Tokens shown from a node's beginning."""
TAIL = 8
"""Tokens shown from its end, where it is longer."""
TENANTS = 8
"""Tenants named among a node's readers."""
LOOKS = 4_000
"""Nodes looked at in one go, at most: the engine waits meanwhile."""
REMEMBERED = 64
"""Nodes that were dropped lately and are still named."""
_CLOCK_BITS = 48
"""More than the tree's logical time will ever need."""

Paths: TypeAlias = Collection[tuple[str, tuple[Node, ...]]]
"""Paths through the tree, each with whose it is or what it is called."""


class Block(NamedTuple):
    """A node as it is shown.

    Attributes:
        id: its name for as long as it is shown; a split gives the upper half a new one.
        parent: the id of the block above, None at the top.
        namespace: where it stands.
        start: position of its first token.
        tokens, computed: tokens it holds, and how many of them are computed.
        readers: running answers that begin with it.
        tenants: the tenants that have most of those readers, and how many.
        pinned: it is part of a pinned prefix and stays.
        pins: names of the pinned prefixes that end with it.
        more: children that are not shown.
        head, tail: its first token ids and, where those are not all, its last; as the tree has
            them, so perhaps with a mark in the high bits.
    """

    id: int
    parent: int | None
    namespace: Namespace
    start: int
    tokens: int
    computed: int
    readers: int
    tenants: tuple[tuple[str, int], ...]
    pinned: bool
    pins: tuple[str, ...]
    more: int
    head: tuple[int, ...]
    tail: tuple[int, ...]


class Sight(NamedTuple):
    """One look: blocks with parents before children and the newest sibling first; what was left
    out; and the ids of blocks that were dropped since they were last seen."""

    blocks: tuple[Block, ...]
    hidden_nodes: int
    hidden_tokens: int
    dropped: tuple[int, ...]


class TreeWatch:
    """Looks at one tree again and again. Holds on to the nodes it showed last, and to no others.

    Args:
        limit: blocks shown at most.
    """

    def __init__(self, limit: int = 400) -> None:
        self._limit = limit
        self._ids: dict[Node, int] = {}
        self._next = 0
        self._dropped: deque[int] = deque(maxlen=REMEMBERED)

    def look(self, tree: PrefixTree, paths: Paths, pins: Paths = ()) -> Sight:
        """The blocks that most answers read, then those that were used last.

        `paths` are the running answers: tenant and nodes; `pins` the pinned prefixes: name and
        nodes. Changes nothing in the tree. Costs O(limit log limit + nodes on the paths), and looks
        at no more than `LOOKS` nodes.
        """
        readers: dict[Node, Counter[str]] = {}
        for tenant, path in paths:
            for node in path:
                readers.setdefault(node, Counter())[tenant] += 1
        pinned: dict[Node, list[str]] = {node: [] for _, path in pins for node in path}
        for name, path in pins:
            pinned[path[-1]].append(name)
        children = self._choose(tree)
        self._name(children)
        blocks: list[Block] = []
        stack = list(reversed(children.get(None, ())))
        while stack:
            node = stack.pop()
            below = children.get(node, [])
            by = readers.get(node, Counter())
            blocks.append(self._block(node, by, pinned.get(node), len(below)))
            stack.extend(reversed(below))
        stats = tree.stats()
        return Sight(
            blocks=tuple(blocks),
            hidden_nodes=stats.nodes - len(blocks),
            hidden_tokens=stats.tokens - sum(block.tokens for block in blocks),
            dropped=tuple(self._dropped),
        )

    def _choose(self, tree: PrefixTree) -> dict[Node | None, list[Node]]:
        """The shown children of each shown node, newest first; those of None are at the top.

        No child has more readers, or was used later, than its parent. So a search that always
        takes the best node it knows finds the best ones, whatever their depth.
        """
        looks = LOOKS
        line: list[tuple[int, int, _Siblings]] = []  # the best sibling of each family seen so far

        def enter(siblings: _Siblings) -> None:
            if siblings.ranked:
                heapq.heappush(line, (siblings.ranked[-1][0], next(tickets), siblings))

        tickets = count()
        first = _Siblings(reversed(tree.roots()), looks)
        looks -= len(first.ranked)
        enter(first)
        chosen: dict[Node | None, list[tuple[int, Node]]] = {}
        shown = 0
        while line and shown < self._limit:
            siblings = heapq.heappop(line)[2]
            _, place, node = siblings.ranked.pop()
            enter(siblings)
            if not node.is_root:
                above = node.parent
                at_top = above is None or above.is_root
                chosen.setdefault(None if at_top else above, []).append((place, node))
                shown += 1
            below = _Siblings(reversed(node.children.values()), looks)
            looks -= len(below.ranked)
            enter(below)
        return {
            above: [node for _, node in sorted(found, key=itemgetter(0))]
            for above, found in chosen.items()
        }

    def _name(self, children: Mapping[Node | None, list[Node]]) -> None:
        """Ids for the nodes that are shown now; those that left the tree are noted as dropped."""
        before, self._ids = self._ids, {}
        for siblings in children.values():
            for node in siblings:
                known = before.pop(node, None)
                if known is None:
                    known, self._next = self._next, self._next + 1
                self._ids[node] = known
        # What has left the tree has no parent. One with children was not dropped: it became one
        # with its only child.
        self._dropped += (
            name for node, name in before.items() if node.parent is None and not node.children
        )

    def _block(
        self, node: Node, by: Counter[str], pins: list[str] | None, shown_below: int
    ) -> Block:
        tokens = node.tokens
        whole = len(tokens) <= HEAD + TAIL
        above = node.parent
        return Block(
            id=self._ids[node],
            parent=None if above is None or above.is_root else self._ids[above],
            namespace=node.namespace,
            start=node.start,
            tokens=len(tokens),
            computed=node.computed,
            readers=sum(by.values()),
            tenants=tuple(by.most_common(TENANTS)),
            pinned=pins is not None,
            pins=tuple(pins or ()),
            more=len(node.children) - shown_below,
            head=tuple(tokens if whole else tokens[:HEAD]),
            tail=() if whole else tuple(tokens[-TAIL:]),
        )


class _Siblings:
    """Children of one node, the most important last; (weight, place among them, node) each."""

    def __init__(self, nodes: Iterable[Node], most: int) -> None:
        self.ranked = [
            (-(node.pins << _CLOCK_BITS) - node.last_used, place, node)
            for place, node in enumerate(islice(nodes, most))
        ]
        self.ranked.sort(reverse=True)  # places differ, so nodes are never compared
