"""check() finds each kind of damage and names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from foreword.cache import InvariantError, Namespace, Node, PageRange, PrefixTree, Run
from tests.cache.support import NS, commit_all, keep

LONG = list(range(100, 132))


def healthy() -> tuple[PrefixTree, Node, Node, Node]:
    """A tree with an upper node, its continuation, and another child that nobody pins."""
    tree = PrefixTree(32, 8)
    lower = tree.acquire(NS, LONG[:20], room=9)
    commit_all(tree)
    keep(tree, [*LONG[:10], 1, 2])
    (child,) = (node for node in tree.nodes() if not node.pins)
    (upper, _) = tree.path(lower)
    tree.check()
    return tree, upper, lower.node, child


def _hide_child(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    upper.children[55] = upper.children.pop(child.tokens[0])


def _orphan(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.parent = lower


def _shift(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.start += 1


def _lose_token(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    lower.tokens.pop()


def _lose_slot(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    lower.runs = [Run(18, 9)]


def _alias(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.runs = [Run(16, 2)]


def _scratch(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.runs = [Run(0, 2)]


def _ragged(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    lower.runs = [Run(18, 9), Run(28, 1)]


def _torn(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    lower.runs = [Run(18, 6), Run(24, 4)]


def _hole(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.runs = [Run(child.runs[0].start + 1, 2)]


def _stranger_in_page(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.runs = [Run(lower.runs[0].end, 2)]


def _continuation(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    upper.continuation = None


def _pins(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    upper.pins += 1


def _lost_lease(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    tree._leases.clear()


def _clock(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    upper.last_used = 0


def _too_computed(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    lower.computed += 1
    tree._store.computed_tokens += 1


def _parent_pending(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    upper.computed -= 1
    tree._store.computed_tokens -= 1


def _unpinned_pending(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    child.computed -= 1
    tree._store.computed_tokens -= 1


def _miscount(name: str) -> Callable[..., None]:
    def damage(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
        setattr(tree._store, name, getattr(tree._store, name) + 1)

    return damage


def _freed(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    tree._store.pages.free([PageRange(1, 1)])


def _leaked(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    tree._store.pages.allocate(1)


def _extent_size(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    tree._store.pages._open._sizes.pop()


def _queue(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    assert tree._store.queue.pop() is child


def _empty_root(tree: PrefixTree, upper: Node, lower: Node, child: Node) -> None:
    other = Namespace("other", "x")
    tree._store.roots[other] = Node(other, None, [], 0, [])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_hide_child, "keyed by first token"),
        (_orphan, "a child knows its parent"),
        (_shift, "positions are consecutive"),
        (_lose_token, "tokens are counted"),
        (_lose_slot, "runs cover exactly the tokens"),
        (_alias, "no slot belongs to two nodes"),
        (_scratch, "outside the scratch page"),
        (_ragged, "start on a page boundary"),
        (_torn, "side by side are one run"),
        (_hole, "filled from its front"),
        (_stranger_in_page, "filled down one path"),
        (_continuation, "a continuation is known"),
        (_pins, "pins are the leases"),
        (_lost_lease, "pins are the leases"),
        (_clock, "a parent is used with its child"),
        (_too_computed, "computed is a prefix"),
        (_parent_pending, "a computed child has a computed parent"),
        (_unpinned_pending, "pending tokens are pinned"),
        (_miscount("num_nodes"), "nodes are counted"),
        (_miscount("num_tokens"), "tokens are counted"),
        (_miscount("computed_tokens"), "computed tokens are counted"),
        (_miscount("evictable_pages"), "evictable pages"),
        (_freed, "used pages hold tokens"),
        (_leaked, "used pages hold tokens"),
        (_extent_size, "known by size"),
        (_queue, "queued for eviction"),
        (_empty_root, "an empty root"),
    ],
)
def test_damage_is_named(damage: Callable[..., None], named: str) -> None:
    tree, upper, lower, child = healthy()
    damage(tree, upper, lower, child)
    with pytest.raises(InvariantError, match=named):
        tree.check()
