"""extend and fork: growing in place, growing apart, growing together."""

from __future__ import annotations

import pytest

from foreword.cache import OutOfPages, PrefixTree, Run
from tests.cache.support import NS, OTHER, commit_all, keep, lease_slots, snapshot

LONG = list(range(100, 132))


@pytest.fixture
def tree() -> PrefixTree:
    return PrefixTree(64, 8)


def test_a_lone_lease_grows_in_place_as_one_run(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG[:5])
    node, epoch = lease.node, tree.epoch
    for token in range(60):
        tree.extend(lease, [token])
        assert lease.node is node
    assert node.runs == [Run(8, 65)]
    assert node.tokens == [*LONG[:5], *range(60)]
    assert tree.epoch == epoch
    assert (tree.num_tokens, tree.used_pages) == (65, 9)
    tree.check()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 11, 12, 40])
def test_many_tokens_at_once_are_as_many_one_by_one(tree: PrefixTree, count: int) -> None:
    lease = tree.acquire(NS, LONG[:12])
    tree.extend(lease, list(range(count)))
    assert lease.node.runs == [Run(8, 12 + count)]
    assert lease.tokens == [*LONG[:12], *range(count)]
    tree.check()


def test_room_keeps_two_growing_leases_in_one_run_each(tree: PrefixTree) -> None:
    leases = [tree.acquire(NS, [at, *LONG[:9]], room=30) for at in range(4)]
    epoch = tree.epoch
    for token in range(30):
        for lease in leases:
            tree.extend(lease, [token])
    assert [lease.node.runs for lease in leases] == [[Run(8 + 40 * at, 40)] for at in range(4)]
    assert tree.epoch == epoch
    tree.check()


def test_room_is_for_forks_too(tree: PrefixTree) -> None:
    leases = [tree.acquire(NS, LONG[:8], room=24)]
    leases += [tree.fork(leases[0]) for _ in range(2)]
    for token in range(24):
        for at, lease in enumerate(leases):
            tree.extend(lease, [1000 * at + token])
    assert [len(lease.node.runs) for lease in leases] == [1, 1, 1]
    tree.check()


def test_growth_that_is_blocked_is_a_new_run_and_a_new_epoch(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG[:6])
    tree.acquire(OTHER, [1])
    epoch = tree.epoch
    tree.extend(lease, [1, 2])
    assert (lease.node.runs, tree.epoch) == ([Run(8, 8)], epoch)
    tree.extend(lease, [3])
    assert lease.node.runs == [Run(8, 8), Run(24, 1)]
    assert tree.epoch > epoch
    epoch = tree.epoch
    tree.extend(lease, list(range(20)))
    assert (lease.node.runs, tree.epoch) == ([Run(8, 8), Run(24, 21)], epoch)
    tree.check()


def test_room_is_avoided_by_others_until_nothing_else_is_free() -> None:
    tree = PrefixTree(9, 8)
    grower = tree.acquire(NS, LONG[:8], room=24)
    other = tree.acquire(OTHER, list(range(32)))
    assert other.node.runs == [Run(40, 32)]
    late = tree.acquire(OTHER, [7])
    assert late.node.runs == [Run(32, 1)]
    tree.extend(grower, list(range(16)))
    assert grower.node.runs == [Run(8, 24)]
    tree.check()


def test_room_is_given_up_at_release() -> None:
    tree = PrefixTree(9, 8)
    lease = tree.acquire(NS, LONG[:8], room=24)
    commit_all(tree)
    tree.release(lease)
    assert tree._store.pages.reserved_pages == 0
    assert tree.acquire(OTHER, list(range(56))).node.runs == [Run(16, 56)]
    tree.check()


def test_room_is_given_up_by_a_node_that_branches_off_elsewhere(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG[:8], room=8)
    tree.acquire(OTHER, [1])
    assert tree._store.pages.reserved_pages == 1
    tree.acquire(NS, LONG)
    assert tree._store.pages.reserved_pages == 0
    assert lease.node.runs == [Run(8, 8)]
    tree.check()


def test_forks_share_until_they_differ(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:12])
    shared, epoch = first.node, tree.epoch
    second = tree.fork(first)
    assert second.node is shared
    assert shared.pins == 2
    assert tree.epoch > epoch
    tree.extend(first, [1])
    assert first.node is not shared
    assert second.node is shared
    tree.extend(second, [2])
    assert (first.node.parent, second.node.parent) == (shared, shared)
    assert (shared.tokens, first.tokens, second.tokens) == (
        LONG[:12],
        [*LONG[:12], 1],
        [*LONG[:12], 2],
    )
    tree.check()


def test_forks_that_say_the_same_stay_together(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:12])
    second = tree.fork(first)
    tree.extend(first, [1, 2, 3])
    tree.extend(second, [1, 2, 3])
    assert second.node is first.node
    tree.extend(first, [4, 5])
    tree.extend(second, [4])
    assert first.tokens == [*LONG[:12], 1, 2, 3, 4, 5]
    assert second.tokens == [*LONG[:12], 1, 2, 3, 4]
    assert first.node.parent is second.node
    tree.extend(second, [6])
    assert tree.num_tokens == 18
    tree.check()


def test_a_fork_of_the_empty_path(tree: PrefixTree) -> None:
    first = tree.acquire(NS, [])
    second = tree.fork(first)
    tree.extend(first, [1])
    tree.extend(second, [2])
    assert (first.tokens, second.tokens) == ([1], [2])
    tree.check()
    tree.release(first)
    tree.release(second)
    assert tree.stats().namespaces == 0


def test_the_last_holder_grows_in_place_again(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:12])
    second = tree.fork(first)
    tree.release(second)
    node = first.node
    tree.extend(first, [1])
    assert first.node is node
    tree.check()


def test_a_lower_half_keeps_growing_in_its_page(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:13])
    tree.acquire(NS, [*LONG[:10], 1])
    node = first.node
    assert node.runs == [Run(18, 3)]
    tree.extend(first, [7, 8, 9])
    assert first.node is node
    assert node.runs == [Run(18, 6)]
    tree.check()


def test_a_lower_half_inside_one_page_keeps_growing_in_it(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:5])
    tree.acquire(NS, [*LONG[:2], 1])
    tree.acquire(NS, [*LONG[:4], 1])
    tree.extend(first, [7, 8])
    assert lease_slots(first) == list(range(8, 15))
    tree.check()


def test_an_upper_half_that_is_a_leaf_again_fills_its_page_again(tree: PrefixTree) -> None:
    keep(tree, LONG[:13])
    lease = tree.acquire(NS, LONG[:10])
    tree.extend(lease, [1])  # the page is still the lower half's
    assert lease_slots(lease)[10] >= 24
    tree.release(lease)
    tree.clear()
    keep(tree, LONG[:13])
    lease = tree.acquire(NS, LONG[:10])
    node = lease.node
    assert tree.evict(1) == 0  # the lower half owns no page
    assert not node.children
    tree.extend(lease, [1, 2])
    assert lease.node is node
    assert node.runs == [Run(8, 12)]
    tree.check()


def test_a_lease_inside_the_tree_grows_a_child(tree: PrefixTree) -> None:
    tree.acquire(NS, LONG)
    lease = tree.acquire(NS, LONG[:10])
    upper = lease.node
    tree.extend(lease, [1, 2])
    assert lease.node.parent is upper
    assert upper.pins == 2
    assert lease.node.pins == 1
    tree.check()


def test_what_is_known_already_is_walked_into_and_split(tree: PrefixTree) -> None:
    keep(tree, LONG)
    lease = tree.acquire(NS, LONG[:10])
    free = tree.free_pages
    tree.extend(lease, LONG[10:20])
    assert [len(node.tokens) for node in tree.path(lease)] == [20]  # joined
    assert lease.node.pending == 0
    assert tree.free_pages == free
    tree.extend(lease, [*LONG[20:25], 1, 2])
    assert [len(node.tokens) for node in tree.path(lease)] == [25, 2]
    assert lease.tokens == [*LONG[:25], 1, 2]
    assert lease.node.pending == 2
    tree.check()
    tree.release(lease)
    tree.check()


def test_leases_that_go_the_same_way_leave_one_node(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:10])
    second = tree.fork(first)
    for token in range(5):
        tree.extend(first, [token])
        assert len(tree.path(first)) == 2  # the second one still ends in the node above
        tree.extend(second, [token])
        assert tree.path(first) == tree.path(second) == (first.node,)
        tree.check()
    assert first.node.tokens == [*LONG[:10], 0, 1, 2, 3, 4]
    assert len(first.node.runs) == 1
    assert first.node.pins == 2


def test_leases_that_part_keep_their_node(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG[:10])
    second = tree.fork(first)
    tree.extend(first, [1])
    tree.extend(second, [2])
    assert [len(node.tokens) for node in tree.path(first)] == [10, 1]
    assert [len(node.tokens) for node in tree.path(second)] == [10, 1]
    tree.check()


def test_a_follower_leaves_no_chain_behind(tree: PrefixTree) -> None:
    leader = tree.acquire(NS, LONG[:12], room=20)
    follower = tree.fork(leader)
    tree.extend(leader, list(range(20)))
    ahead, slots = leader.node, lease_slots(leader)
    commit_all(tree)
    for token in range(20):
        tree.extend(follower, [token])
        tree.check()
        assert tree.stats().nodes == (2 if token < 19 else 1)
        assert leader.node is ahead
        assert lease_slots(leader) == slots
        assert lease_slots(follower) == slots[: follower.length]
        assert follower.node.computed == follower.length
    assert follower.node is ahead


def test_nodes_stay_apart_where_a_lease_ends_or_a_child_hangs(tree: PrefixTree) -> None:
    keep(tree, LONG)
    first, second = tree.acquire(NS, LONG[:10]), tree.acquire(NS, LONG[:10])
    tree.extend(first, LONG[10:20])
    assert [len(node.tokens) for node in tree.path(first)] == [10, 10]
    keep(tree, [*LONG[:10], 1])
    tree.extend(second, LONG[10:20])
    assert [len(node.tokens) for node in tree.path(second)] == [10, 10]
    assert first.node is second.node
    tree.check()


@pytest.mark.parametrize("computed", [3, 12, 15])
def test_joined_nodes_are_computed_as_far_as_they_were(tree: PrefixTree, computed: int) -> None:
    leader = tree.acquire(NS, LONG[:12])
    follower = tree.fork(leader)
    tree.extend(leader, [1, 2, 3, 4, 5])
    upper, lower = tree.path(leader)
    tree.commit(upper, min(12, computed))
    tree.commit(lower, max(0, computed - 12))
    tree.extend(follower, [1, 2, 3, 4, 5])
    assert tree.path(follower) == (lower,)
    assert lower.runs == [Run(8, 17)]
    assert lower.computed == computed
    tree.check()


def test_extend_evicts_what_nobody_pins() -> None:
    tree = PrefixTree(4, 8)
    keep(tree, list(range(16)))
    lease = tree.acquire(NS, LONG[:8])
    tree.extend(lease, [1])
    assert tree.match(NS, list(range(16))).length == 0
    assert lease.length == 9
    tree.check()


def test_extend_that_does_not_fit_changes_nothing() -> None:
    tree = PrefixTree(4, 8)
    first = tree.acquire(NS, LONG[:12])
    keep(tree, [1, 2])
    before = snapshot(tree)
    with pytest.raises(OutOfPages, match="2 needed, 0 free and 1 evictable"):
        tree.extend(first, list(range(13)))
    assert snapshot(tree) == before
    second = tree.fork(first)
    before = snapshot(tree)
    with pytest.raises(OutOfPages):
        tree.extend(second, list(range(13)))
    assert snapshot(tree) == before
    assert second.node is first.node
    tree.extend(second, [5])
    with pytest.raises(OutOfPages):
        tree.extend(first, list(range(9)))
    tree.check()


def test_no_tokens_do_nothing(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    fork = tree.fork(lease)
    before = snapshot(tree)
    tree.extend(lease, [])
    assert snapshot(tree) == before
    tree.release(fork)
    before = snapshot(tree)
    tree.extend(lease, ())
    assert snapshot(tree) == before


def test_a_lease_of_another_tree_is_refused(tree: PrefixTree) -> None:
    stranger = PrefixTree(8).acquire(NS, [1])
    for verb in (tree.release, tree.fork, tree.path, lambda lease: tree.extend(lease, [1])):
        with pytest.raises(ValueError, match="another tree"):
            verb(stranger)
