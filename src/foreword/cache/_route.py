"""Routes: how a token path runs through the tree, found without changing anything."""

from __future__ import annotations

from typing import NamedTuple

from foreword._paths import common_prefix
from foreword.cache._node import Node
from foreword.cache._runs import first_slots, owned_pages, slice_runs
from foreword.cache._store import NodeStore


class Route(NamedTuple):
    """What carrying out an acquire or extend means, decided before anything changes.

    Attributes:
        found: the nodes that hold the first tokens, the last one perhaps only in part.
        matched: how many tokens they hold.
        cut: tokens matched in the last of them if it must be split there, else 0.
        behind: the slot where the missing tokens can go on right behind their parent's, if any.
        needed: pages to allocate for the missing tokens.
        available: pages that are free, or can be evicted without touching `found`.
    """

    found: list[Node]
    matched: int
    cut: int
    behind: int | None
    needed: int
    available: int

    @property
    def computed(self) -> int:
        """How many of the matched tokens are computed."""
        computed = sum(node.computed for node in self.found)
        if self.cut:
            last = self.found[-1]
            computed += min(last.computed, self.cut) - last.computed
        return computed


def find_route(base: Node | None, tokens: list[int], room: int, store: NodeStore) -> Route:
    """How `tokens` run below `base`, and what those missing would take; O(tokens + depth).

    No base is a namespace that is not there yet.
    """
    found: list[Node] = []
    matched = cut = 0
    last = base
    while last is not None and matched < len(tokens):
        child = last.children.get(tokens[matched])
        if child is None:
            break
        common = common_prefix(child.tokens, tokens, matched)
        found.append(child)
        matched += common
        last = child
        if common < len(child.tokens):
            cut = common
            break
    size = store.page_size
    rest = len(tokens) - matched
    behind = None if cut or last is None else store.slot_behind(last, rest + room)
    protected = 0
    for node in found:
        if not node.pins:
            runs = slice_runs(node.runs, 0, cut) if cut and node is last else node.runs
            protected += owned_pages(runs, size)
    needed = first_slots(behind or 0, rest, size)
    available = store.pages.free_pages + store.evictable_pages - protected
    return Route(found, matched, cut, behind, needed, available)
