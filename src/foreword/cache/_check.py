"""Every invariant of the tree, verified from scratch.

Nothing here trusts a counter, a clock or a queue of the tree: each is recomputed from the nodes'
tokens, slots and leases, by other means than the tree keeps it.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from foreword.cache._errors import InvariantError
from foreword.cache._node import Node
from foreword.cache._pages import PageAllocator

if TYPE_CHECKING:
    from foreword.cache._tree import PrefixTree


def check_tree(tree: PrefixTree) -> None:
    """Raise `InvariantError` with the name of the first broken invariant."""
    nodes = _check_shape(tree)
    _check_pins(tree, nodes)
    _check_pending(nodes)
    owners = _check_slots(tree, nodes)
    used = _check_pages(tree, nodes, owners)
    _check_extents(tree._store.pages, used)
    _check_eviction(tree, nodes, owners)


def _require(holds: bool, invariant: str, where: object) -> None:
    if not holds:
        raise InvariantError(f"{invariant}: {where}")


def _check_shape(tree: PrefixTree) -> list[Node]:
    """Nodes hang together as a radix tree; returns them all, without the roots."""
    nodes: list[Node] = []
    for ns, root in tree._store.roots.items():
        _require(root.is_root and not root.runs, "a root holds no tokens", ns)
        _require(root.namespace == ns and root.parent is None, "a root stands in its place", ns)
        _require(bool(root.children or root.pins), "an empty root that nobody pins is dropped", ns)
        level = [root]
        while level:
            below = []
            for node in level:
                for first, child in node.children.items():
                    _require(bool(child.tokens), "only a root is empty", child)
                    _require(child.tokens[0] == first, "children are keyed by first token", child)
                    _require(child.parent is node, "a child knows its parent", child)
                    _require(child.namespace == ns, "a path stays in its namespace", child)
                    _require(child.start == node.end, "positions are consecutive", child)
                    below.append(child)
            nodes += below
            level = below
    _require(len({id(node) for node in nodes}) == len(nodes), "a node stands in one place", nodes)
    _require(tree._store.num_nodes == len(nodes), "nodes are counted", tree._store.num_nodes)
    tokens = sum(len(node.tokens) for node in nodes)
    _require(tree.num_tokens == tokens, "tokens are counted", (tree.num_tokens, tokens))
    computed = sum(node.computed for node in nodes)
    _require(
        tree.computed_tokens == computed,
        "computed tokens are counted",
        (tree.computed_tokens, computed),
    )
    return nodes


def _check_pins(tree: PrefixTree, nodes: list[Node]) -> None:
    through: Counter[int] = Counter()
    for lease in tree._leases:
        _require(lease.tree is tree and not lease.closed, "open leases are this tree's", lease)
        node: Node | None = lease.node
        while node is not None:
            through[id(node)] += 1
            top, node = node, node.parent
        _require(tree._store.roots.get(top.namespace) is top, "a leased path is in the tree", lease)
    for node in [*tree._store.roots.values(), *nodes]:
        _require(node.pins == through[id(node)], "pins are the leases through a node", node)
        for child in node.children.values():
            _require(node.last_used >= child.last_used, "a parent is used with its child", child)
        _require(node.last_used <= tree._clock, "no clock runs ahead", node)


def _check_pending(nodes: list[Node]) -> None:
    for node in nodes:
        _require(0 <= node.computed <= len(node.tokens), "computed is a prefix", node)
        parent = node.parent
        if node.computed and parent is not None:
            _require(parent.pending == 0, "a computed child has a computed parent", node)
        if not node.pins:
            _require(node.pending == 0, "pending tokens are pinned", node)


def _check_slots(tree: PrefixTree, nodes: list[Node]) -> np.ndarray:
    """Runs cover the tokens and no slot has two nodes; returns each slot's node index or -1."""
    size = tree.page_size
    owners = np.full(tree.num_slots, -1, dtype=np.int64)
    for at, node in enumerate(nodes):
        slots = sum(run.length for run in node.runs)
        _require(slots == len(node.tokens), "runs cover exactly the tokens", node)
        for number, (start, length) in enumerate(node.runs):
            _require(length > 0, "no run is empty", node)
            _require(
                size <= start and start + length <= len(owners),
                "runs lie in the pool, outside the scratch page",
                node,
            )
            if number:
                _require(start % size == 0, "later runs start on a page boundary", node)
                before = node.runs[number - 1].end
                _require(before % size == 0, "earlier runs end on a page boundary", node)
                _require(before != start, "runs side by side are one run", node)
            taken = owners[start : start + length]
            _require(bool((taken == -1).all()), "no slot belongs to two nodes", node)
            taken[:] = at
    return owners


def _check_pages(tree: PrefixTree, nodes: list[Node], owners: np.ndarray) -> np.ndarray:
    """Pages are filled from the front, down one path; returns which pages are used."""
    pages = owners.reshape(-1, tree.page_size)
    for page in np.flatnonzero((pages[:, :-1] != pages[:, 1:]).any(axis=1)).tolist():
        fillers = [nodes[at] if at >= 0 else None for at in pages[page].tolist()]
        for left, right in pairwise(fillers):
            if left is None:
                _require(right is None, "a page is filled from its front", f"page {page}")
            elif right is not None and right is not left:
                _require(right.parent is left, "a page is filled down one path", f"page {page}")
    for node in nodes:
        end = node.runs[-1].end
        behind = [child for child in node.children.values() if child.runs[0].start == end]
        _require(behind == [node.continuation] * len(behind), "a continuation is known", node)
        _require(node.continuation is None or bool(behind), "a continuation is a child", node)
    used: np.ndarray = (pages != -1).any(axis=1)
    total = int(used.sum())
    _require(tree.used_pages == total, "used pages hold tokens", (tree.used_pages, total))
    _require(
        tree.free_pages + total == tree.num_pages - 1,
        "pages are free or used",
        (tree.free_pages, total, tree.num_pages),
    )
    return used


def _check_extents(pages: PageAllocator, used: np.ndarray) -> None:
    """The allocator's extents are exactly the pages that no node uses."""
    marked = np.frombuffer(pages._used, dtype=np.uint8).astype(bool)
    wrong = np.flatnonzero(marked != used)
    _require(not wrong.size, "given-out pages are used", wrong)
    seen = np.zeros(pages.num_pages, dtype=np.int64)
    seen[0] = 1  # the scratch page
    for kind, extents in (("open", pages._open), ("reserved", pages._reserved)):
        by_end = {start + length: start for start, length in extents.starts.items()}
        _require(by_end == extents.ends, f"{kind} extents are known by both ends", by_end)
        by_size = sorted((length, start) for start, length in extents.starts.items())
        _require(by_size == extents._sizes, f"{kind} extents are known by size", by_size)
        total = sum(extents.starts.values())
        _require(total == extents.pages, f"{kind} pages are counted", (total, extents.pages))
        for start, length in extents.starts.items():
            _require(length > 0, "no extent is empty", start)
            seen[start : start + length] += 1
            if kind == "open":
                _require(start + length not in extents.starts, "open extents are maximal", start)
            else:
                _require(bool(used[start - 1]), "a reservation has its holder in front", start)
    _require(bool((seen + used == 1).all()), "each page is free or used once", seen + used)


def _check_eviction(tree: PrefixTree, nodes: list[Node], owners: np.ndarray) -> None:
    """What can be evicted is counted, and every unpinned leaf is queued."""
    first = owners[:: tree.page_size]
    unpinned = np.array([not node.pins for node in nodes], dtype=bool)
    evictable = int(unpinned[first[first >= 0]].sum())
    _require(
        tree.evictable_pages == evictable,
        "evictable pages are those of unpinned nodes",
        (tree.evictable_pages, evictable),
    )
    queued = {id(node) for node in tree._store.queue}
    for node in nodes:
        if not node.pins and not node.children:
            _require(id(node) in queued, "unpinned leaves are queued for eviction", node)
