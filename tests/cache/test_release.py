"""release, evict and clear: what stays, what goes first, what never goes."""

from __future__ import annotations

import pytest

from foreword.cache import PrefixTree, Run
from tests.cache.support import NS, OTHER, commit_all, keep, paths, snapshot

LONG = list(range(100, 132))


@pytest.fixture
def tree() -> PrefixTree:
    return PrefixTree(64, 8)


def test_computed_tokens_stay_after_release(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    commit_all(tree)
    epoch = tree.epoch
    tree.release(lease)
    assert tree.epoch > epoch
    assert lease.closed
    assert tree.match(NS, LONG)[:2] == (32, 32)
    assert (tree.evictable_pages, tree.used_pages) == (4, 4)
    again = tree.acquire(NS, LONG)
    assert (again.node.computed, tree.evictable_pages) == (32, 0)
    tree.check()


def test_a_released_lease_is_of_no_use(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    tree.release(lease)
    before = snapshot(tree)
    for verb in (tree.release, tree.fork, tree.path, lambda lease: tree.extend(lease, [1])):
        with pytest.raises(ValueError, match="lease is released"):
            verb(lease)
    with pytest.raises(ValueError, match="lease is released"):
        _ = lease.tokens
    assert snapshot(tree) == before
    assert repr(lease) == "Lease(closed)"
    assert repr(tree.acquire(NS, LONG)) == "Lease(length=32)"


def test_pending_tokens_go_with_their_last_lease(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    tree.release(lease)
    assert list(tree.nodes()) == []
    assert (tree.used_pages, tree.num_tokens, tree.stats().namespaces) == (0, 0, 0)
    tree.check()


@pytest.mark.parametrize("computed", [1, 7, 8, 9, 16, 31])
def test_a_node_computed_in_part_is_shortened(tree: PrefixTree, computed: int) -> None:
    lease = tree.acquire(NS, LONG, room=50)
    tree.commit(lease.node, computed)
    tree.release(lease)
    assert paths(tree) == [tuple(LONG[:computed])]
    assert tree.used_pages == tree.evictable_pages == -(-computed // 8)
    assert tree.computed_tokens == tree.num_tokens == computed
    tree.check()
    again = tree.acquire(NS, LONG)
    assert tree.path(again)[0].runs[0] == Run(8, computed)
    tree.check()


def test_pending_tokens_that_another_lease_needs_stay(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG)
    second = tree.acquire(NS, LONG[:13])
    tree.commit(second.node, 5)
    tree.release(first)
    assert paths(tree) == [tuple(LONG[:13])]
    assert second.node.pending == 8
    assert tree.used_pages == 2
    tree.check()
    tree.release(second)
    assert paths(tree) == [tuple(LONG[:5])]
    tree.check()


def test_shortening_takes_pending_nodes_below_along(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG[:13])
    tree.release(tree.acquire(NS, LONG[:6]))
    fork = tree.fork(lease)
    tree.extend(fork, [1, 2])
    tree.release(lease)
    assert len(tree.path(fork)) == 3
    tree.commit(tree.path(fork)[0], 2)
    tree.release(fork)
    assert paths(tree) == [tuple(LONG[:2])]
    tree.check()


def test_the_upper_halfs_page_outlives_a_shortened_lower_half(tree: PrefixTree) -> None:
    lower = tree.acquire(NS, LONG[:20])
    upper = tree.acquire(NS, LONG[:10])
    tree.release(lower)
    assert tree.used_pages == 2
    tree.extend(upper, [1])
    assert upper.node.runs == [Run(8, 11)]
    tree.check()


def test_least_recently_used_leaves_go_first(tree: PrefixTree) -> None:
    for first in range(4):
        keep(tree, [first, *LONG[:7]])
    tree.release(tree.acquire(NS, [0, *LONG[:7]]))
    tree.match(NS, [1, *LONG[:7]])  # does not count as use
    gone = []
    while tree.used_pages:
        assert tree.evict(1) == 1
        left = {path[0] for path in paths(tree)}
        gone += [first for first in range(4) if first not in left and first not in gone]
        tree.check()
    assert gone == [1, 2, 3, 0]


def test_leaves_go_before_their_parents(tree: PrefixTree) -> None:
    keep(tree, LONG[:8])
    keep(tree, LONG[:16])
    keep(tree, [*LONG[:8], *range(8)])
    keep(tree, [7] * 8)
    order = []
    before = set(paths(tree))
    while before:
        tree.evict(1)
        after = set(paths(tree))
        (gone,) = before - after
        order.append(gone)
        before = after
    assert order == [
        tuple(LONG[:16]),
        (*LONG[:8], *range(8)),
        tuple(LONG[:8]),
        (7,) * 8,
    ]


def test_pinned_nodes_are_never_evicted(tree: PrefixTree) -> None:
    held = tree.acquire(NS, LONG[:16])
    commit_all(tree)
    keep(tree, LONG)
    keep(tree, [1, 2, 3])
    assert tree.evictable_pages == 3
    assert tree.evict(1000) == 3
    assert paths(tree) == [tuple(LONG[:16])]
    assert tree.evict(1) == 0
    assert held.tokens == LONG[:16]
    tree.check()


def test_a_node_that_is_extended_into_is_no_longer_evictable(tree: PrefixTree) -> None:
    held = tree.acquire(NS, LONG[:8])
    keep(tree, LONG[:16])
    tree.extend(held, LONG[8:16])
    assert tree.evict(1) == 0
    assert held.tokens == LONG[:16]
    tree.check()


def test_evict_frees_at_least_what_was_asked_and_no_further_node(tree: PrefixTree) -> None:
    for first in range(4):
        keep(tree, [first, *LONG[:15]])
    epoch = tree.epoch
    assert tree.evict(0) == 0
    assert tree.evict(-3) == 0
    assert tree.epoch == epoch
    assert tree.evict(3) == 4
    assert tree.epoch > epoch
    assert tree.evictable_pages == 4
    tree.check()


def test_a_node_without_pages_of_its_own_is_no_obstacle(tree: PrefixTree) -> None:
    keep(tree, LONG[:7])
    tree.release(tree.acquire(NS, LONG[:3]))  # splits inside the one page
    assert len(paths(tree)) == 2
    assert tree.evict(1) == 1
    assert paths(tree) == []
    tree.check()


def test_clear_drops_all_that_nobody_pins(tree: PrefixTree) -> None:
    held = tree.acquire(NS, LONG[:10])
    commit_all(tree)
    keep(tree, LONG)
    keep(tree, [*LONG[:20], 1])
    keep(tree, LONG, OTHER)
    keep(tree, [*LONG[:3], 5], OTHER)
    assert tree.clear(OTHER) == 5
    assert tree.stats().namespaces == 1
    tree.check()
    assert tree.clear() == 3
    assert paths(tree) == [tuple(LONG[:10])]
    assert held.tokens == LONG[:10]
    assert tree.clear() == 0
    tree.check()


def test_the_queue_does_not_grow_with_use(tree: PrefixTree) -> None:
    for _ in range(1000):
        keep(tree, LONG)
    assert len(tree._store.queue) <= 65
    tree.check()
    assert tree.evict(1) == 4


def test_stats(tree: PrefixTree) -> None:
    held = tree.acquire(NS, LONG[:10])
    keep(tree, LONG, OTHER)
    tree.commit(held.node, 4)
    stats = tree.stats()
    assert (stats.namespaces, stats.nodes, stats.leases) == (2, 2, 1)
    assert (stats.tokens, stats.computed_tokens) == (42, 36)
    assert (stats.used_pages, stats.free_pages, stats.evictable_pages) == (6, 57, 4)
    assert (tree.num_pages, tree.num_slots) == (64, 512)
