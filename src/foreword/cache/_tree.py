"""The prefix tree: one radix tree over tokens for the whole model.

Every request holds a *lease* on a path of nodes; what two requests have in common is the same
nodes, and so the same pool slots. Tokens get their slots when they are acquired or extended, and
their keys and values later: until `commit` says so they are *pending*. The verbs, for `n` tokens
and a path of depth `d`:

| verb      | mutates             | costs                            | at zero tokens            |
|-----------|---------------------|----------------------------------|---------------------------|
| `match`   | nothing             | O(n + d)                         | matches 0 tokens          |
| `acquire` | tree, pages, clocks | O(n + d), and what it evicts     | a lease on the empty path |
| `extend`  | tree, pages         | O(n) in place, else as `acquire` | does nothing              |
| `fork`    | pins                | O(d)                             | forks the empty path      |
| `release` | pins, clocks, pages | O(d + log nodes)                 | releases the empty path   |
| `commit`  | one node            | O(1)                             | does nothing              |
| `evict`   | tree, pages         | O(k log nodes), k nodes leave    | frees 0 pages             |

A split moves no keys and no values: it only decides who holds which slots (`_runs.py` says who
owns a page). No method may be called while another one runs; the tree has no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import NamedTuple

from foreword.cache._errors import OutOfPages
from foreword.cache._lease import Lease
from foreword.cache._namespace import Namespace
from foreword.cache._node import Node
from foreword.cache._route import Route, find_route
from foreword.cache._runs import Run, first_slots
from foreword.cache._store import NodeStore


class Match(NamedTuple):
    """What the tree holds of a token path. Valid until the tree changes.

    Attributes:
        length: leading tokens that the tree holds, computed or pending.
        computed: leading tokens whose keys and values are there already.
        path: the nodes that hold them, from the root on; the last one may be matched in part.
        needed_pages: pages that `acquire` would have to allocate for the other tokens.
        available_pages: pages that `acquire` could get: free ones, and those it could evict.
    """

    length: int
    computed: int
    path: tuple[Node, ...]
    needed_pages: int
    available_pages: int


@dataclass(frozen=True)
class TreeStats:
    """Counts of one moment. Pages leave out the scratch page; roots do not count as nodes."""

    namespaces: int
    nodes: int
    leases: int
    tokens: int
    computed_tokens: int
    used_pages: int
    free_pages: int
    evictable_pages: int


class PrefixTree:
    """All prefixes of one model in one pool of `num_pages * page_size` slots.

    Page 0 is the scratch page, so `num_pages - 1` pages hold tokens. Tokens are non-negative ids;
    the tree compares them and gives them no meaning.
    """

    def __init__(self, num_pages: int, page_size: int = 8) -> None:
        self.page_size = page_size
        self._store = NodeStore(num_pages, page_size)
        self._leases: set[Lease] = set()
        self._clock = 0

    @property
    def on_evict(self) -> Callable[[Node], None] | None:
        """Called with each node that eviction or `clear` drops, right before it leaves the tree.

        It still has its parent then, so its path can be read. The listener may not change the tree.
        """
        return self._store.on_evict

    @on_evict.setter
    def on_evict(self, listener: Callable[[Node], None] | None) -> None:
        self._store.on_evict = listener

    # What it holds

    @property
    def epoch(self) -> int:
        """Grows whenever a plan made from nodes and runs may have become wrong.

        That is: a lease comes or goes, a node is made, split, shortened or dropped, a node gets a
        new run. Growth of a node's last run in place, and `commit`, leave it alone.
        """
        return self._store.epoch

    @property
    def num_pages(self) -> int:
        """All pages, the scratch page among them."""
        return self._store.pages.num_pages

    @property
    def num_slots(self) -> int:
        """Slots the pool must have: the scratch page's among them."""
        return self._store.pages.num_pages * self.page_size

    @property
    def free_pages(self) -> int:
        """Pages that belong to nobody."""
        return self._store.pages.free_pages

    @property
    def used_pages(self) -> int:
        """Pages that belong to a node."""
        return self._store.pages.used_pages

    @property
    def evictable_pages(self) -> int:
        """Used pages that eviction could free: those of unpinned nodes."""
        return self._store.evictable_pages

    @property
    def num_tokens(self) -> int:
        """Tokens held, pending ones among them."""
        return self._store.num_tokens

    @property
    def computed_tokens(self) -> int:
        """Tokens held whose keys and values are valid."""
        return self._store.computed_tokens

    def nodes(self, ns: Namespace | None = None) -> Iterator[Node]:
        """The nodes of one namespace or of all, parents before children, without the empty roots.

        The tree must not change while this is being iterated.
        """
        for root in self._roots_of(ns):
            walk = root.walk()
            next(walk)
            yield from walk

    def roots(self) -> list[Node]:
        """The empty nodes that namespaces hang from, in order of arrival. O(namespaces)."""
        return list(self._store.roots.values())

    def path(self, lease: Lease) -> tuple[Node, ...]:
        """The nodes of a lease, from the top; `()` for an empty lease. Valid within one epoch."""
        nodes = []
        node = self._end_of(lease)
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return tuple(nodes)

    def stats(self) -> TreeStats:
        """Counts of this moment. Costs O(1)."""
        return TreeStats(
            namespaces=len(self._store.roots),
            nodes=self._store.num_nodes,
            leases=len(self._leases),
            tokens=self._store.num_tokens,
            computed_tokens=self._store.computed_tokens,
            used_pages=self.used_pages,
            free_pages=self.free_pages,
            evictable_pages=self._store.evictable_pages,
        )

    def check(self) -> None:
        """Verify every invariant from scratch. Costs O(nodes + slots).

        Raises:
            InvariantError: names the invariant that is broken, and where.
        """
        from foreword.cache._check import check_tree  # it loads numpy, which the tree does not need

        check_tree(self)

    # The verbs

    def match(self, ns: Namespace, tokens: Sequence[int], room: int = 0) -> Match:
        """What the tree holds of `tokens`, and whether `acquire` with the same arguments would fit.

        Changes nothing, clocks included.
        """
        _check_room(room)
        route = find_route(self._store.roots.get(ns), _as_list(tokens), room, self._store)
        path = tuple(route.found)
        return Match(route.matched, route.computed, path, route.needed, route.available)

    def acquire(self, ns: Namespace, tokens: Sequence[int], room: int = 0) -> Lease:
        """Pin the path of `tokens`, make what is missing of it, and return a lease on it.

        Missing tokens become one new node with slots of its own and nothing computed; unpinned
        nodes elsewhere are evicted if it needs their pages. `room` is how many tokens the holder
        expects to append: free pages behind are softly reserved for them.

        Raises:
            OutOfPages: it cannot fit; the tree is exactly as before.
        """
        _check_room(room)
        store = self._store
        tokens = _as_list(tokens)
        root = store.roots.get(ns) or Node(ns, None, [], 0, [])
        route = find_route(root, tokens, room, store)
        self._require_pages(route.needed, route.available)
        store.roots[ns] = root
        self._clock += 1
        root.pins += 1
        root.last_used = self._clock
        node = self._follow(root, route, tokens, room, self._clock)
        return self._new_lease(node, len(tokens) + room)

    def extend(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Append `tokens` to a lease.

        In place, if no other lease passes through its node and nothing hangs below: then the node's
        last run grows, and only where it cannot is there a new run. Otherwise the lease moves on
        to a child: to nodes that hold these tokens already, as `acquire` does, and a new one for
        the rest. When the last lease that ended in a node has moved on to its only child, the two
        become one, so answers that go on saying the same never leave a chain of short nodes.

        Raises:
            OutOfPages: it cannot fit; the tree and the lease are exactly as before.
        """
        node = self._end_of(lease)
        in_place = node.pins == 1 and not node.children and not node.is_root
        if in_place and len(tokens) == 1:
            start, length = node.runs[-1]
            if (start + length) % self.page_size:  # the page has a slot left
                node.tokens.append(tokens[0])
                node.runs[-1] = Run(start, length + 1)
                self._store.num_tokens += 1
                return
        tokens = _as_list(tokens)
        if not tokens:
            return
        store = self._store
        room = max(0, lease._reach - node.end - len(tokens))
        if in_place:
            needed = first_slots(node.runs[-1].end, len(tokens), self.page_size)
            free = store.pages.free_pages
            self._require_pages(needed, free + store.evictable_pages)
            store.evict_pages(needed - free)
            store.grow(node, tokens, room)
        else:
            route = find_route(node, tokens, room, store)
            self._require_pages(route.needed, route.available)
            lease._node = self._follow(node, route, tokens, room, node.last_used)
            store.join(node)

    def fork(self, lease: Lease) -> Lease:
        """A second lease on the same path, with the same expectation to grow."""
        end = self._end_of(lease)
        node: Node | None = end
        while node is not None:
            node.pins += 1
            node = node.parent
        return self._new_lease(end, lease._reach)

    def release(self, lease: Lease) -> None:
        """Close a lease. Its computed tokens stay until they are evicted.

        Pending tokens that nobody pins any more are dropped and their pages freed: they would never
        be computed.

        Raises:
            ValueError: the lease is released already, or another tree's.
        """
        node = self._end_of(lease)
        lease._node = None
        self._leases.remove(lease)
        self._store.epoch += 1
        self._clock += 1
        while node.parent is not None:
            parent = node.parent
            self._store.unpin(node, self._clock)
            node = parent
        node.pins -= 1
        node.last_used = self._clock
        self._store.forget_if_empty(node)

    def commit(self, node: Node, upto: int) -> None:
        """Say that the keys and values of the node's first `upto` tokens are in the pool.

        Raises:
            ValueError: `upto` goes back or beyond the node's end, the parent is not wholly computed
                yet, or the node has left the tree.
        """
        parent = node.parent
        fresh = upto - node.computed
        if fresh < 0 or upto > len(node.tokens):
            raise ValueError(
                f"cannot commit {upto} of {len(node.tokens)} tokens: {node.computed} are computed, "
                "and commits only go forward, up to the node's end"
            )
        if fresh:
            if parent is None:
                raise ValueError("cannot commit to a node that has left the tree")
            if parent.computed != len(parent.tokens):
                raise ValueError("cannot commit to a node before its parent is wholly computed")
            node.computed = upto
            self._store.computed_tokens += fresh

    def evict(self, pages: int) -> int:
        """Free at least `pages` pages if unpinned nodes hold as many; returns how many were freed.

        Whole nodes leave, leaves before their parents, the least recently used first.
        """
        return self._store.evict_pages(pages)

    def clear(self, ns: Namespace | None = None) -> int:
        """Drop all that nobody pins, in one namespace or in all; returns the pages freed."""
        freed = 0
        for root in self._roots_of(ns):
            for node in reversed(list(root.walk())):  # children before parents
                if node.parent is not None and not node.pins:
                    freed += self._store.evict(node)
        return freed

    # Leases

    def _follow(self, base: Node, route: Route, tokens: list[int], room: int, now: int) -> Node:
        """Carry out a route that fits: split, pin, evict, add. Returns the path's end."""
        store = self._store
        found = route.found
        if route.cut:
            found[-1] = store.split(found[-1], route.cut)
        for node in found:
            store.pin(node, now)
        store.epoch += 1
        last = found[-1] if found else base
        rest = tokens[route.matched :]
        if not rest:
            return last
        store.evict_pages(route.needed - store.pages.free_pages)
        return store.add(last, rest, room, route.behind, now)

    def _require_pages(self, needed: int, available: int) -> None:
        if needed > available:
            free = self._store.pages.free_pages
            raise OutOfPages(needed, free, available - free)

    def _roots_of(self, ns: Namespace | None) -> list[Node]:
        if ns is None:
            return list(self._store.roots.values())
        root = self._store.roots.get(ns)
        return [] if root is None else [root]

    def _new_lease(self, node: Node, reach: int) -> Lease:
        lease = Lease(self, node, reach)
        self._leases.add(lease)
        self._store.epoch += 1
        return lease

    def _end_of(self, lease: Lease) -> Node:
        if lease.tree is not self:
            raise ValueError("this lease belongs to another tree; use the tree that made it")
        return lease._node or lease.node  # the property says what is wrong with a closed one


def _as_list(tokens: Sequence[int]) -> list[int]:
    return tokens if type(tokens) is list else [index(token) for token in tokens]


def _check_room(room: int) -> None:
    if room < 0:
        raise ValueError(f"room is {room}: the number of tokens expected to follow must be >= 0")
