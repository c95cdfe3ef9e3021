"""match, acquire and commit: what is shared, where it is split, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from foreword._paths import common_prefix
from foreword.cache import Namespace, OutOfPages, PrefixTree, Run
from tests.cache.support import NS, OTHER, commit_all, keep, lease_slots, paths, snapshot

LONG = list(range(100, 132))


@pytest.fixture
def tree() -> PrefixTree:
    return PrefixTree(64, 8)


def test_an_empty_tree_matches_nothing(tree: PrefixTree) -> None:
    before = snapshot(tree)
    assert tree.match(NS, LONG) == (0, 0, (), 4, 63)
    assert tree.match(NS, []) == (0, 0, (), 0, 63)
    assert snapshot(tree) == before


def test_no_tokens_are_a_lease_on_the_empty_path(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, [])
    assert (lease.length, lease.tokens, tree.path(lease)) == (0, [], ())
    assert list(tree.nodes()) == []
    tree.check()
    tree.extend(lease, [])
    tree.extend(lease, [5])
    assert (lease.length, lease.tokens) == (1, [5])
    tree.check()
    tree.release(lease)
    assert tree.stats().namespaces == 0
    tree.check()


def test_a_first_request_is_one_pending_node_in_one_run(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    (node,) = tree.path(lease)
    assert lease.node is node
    assert node.tokens == LONG
    assert node.tokens is not LONG
    assert (node.start, node.end, node.computed, node.pending, node.pins) == (0, 32, 0, 32, 1)
    assert node.runs == [Run(8, 32)]
    assert (tree.num_tokens, tree.computed_tokens, tree.used_pages) == (32, 0, 4)
    tree.check()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17])
def test_lengths_around_a_page(tree: PrefixTree, length: int) -> None:
    lease = tree.acquire(NS, LONG[:length])
    assert tree.used_pages == -(-length // 8)
    assert lease_slots(lease) == list(range(8, 8 + length))
    tree.check()


def test_identical_prompts_are_the_same_node(tree: PrefixTree) -> None:
    first = tree.acquire(NS, LONG)
    epoch = tree.epoch
    second = tree.acquire(NS, list(LONG))
    assert second.node is first.node
    assert first != second
    assert len({first, second}) == 2
    assert first.node.pins == 2
    assert tree.num_tokens == 32
    assert tree.epoch > epoch
    tree.check()


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 13, 31])
def test_a_split_keeps_the_old_node_below_and_every_slot(tree: PrefixTree, cut: int) -> None:
    first = tree.acquire(NS, LONG)
    old, slots = first.node, lease_slots(first)
    tree.commit(old, 20)
    second = tree.acquire(NS, [*LONG[:cut], 1, 2])
    upper, lower = tree.path(first)
    assert lower is old is first.node
    assert tree.path(second)[0] is upper
    assert (upper.tokens, lower.tokens) == (LONG[:cut], LONG[cut:])
    assert (upper.start, lower.start) == (0, cut)
    assert (upper.computed, lower.computed) == (min(cut, 20), max(0, 20 - cut))
    assert (upper.pins, lower.pins, second.node.pins) == (2, 1, 1)
    assert upper.last_used >= second.node.last_used > lower.last_used
    assert lease_slots(first) == slots
    assert lease_slots(second)[:cut] == slots[:cut]
    assert not set(lease_slots(second)[cut:]) & set(slots)
    assert (first.tokens, second.tokens) == (LONG, [*LONG[:cut], 1, 2])
    assert tree.used_pages == 5
    tree.check()


def test_a_page_may_be_split_between_three_nodes(tree: PrefixTree) -> None:
    leases = [tree.acquire(NS, LONG[:8])]
    leases += [tree.acquire(NS, [*LONG[:cut], 1]) for cut in (5, 2, 6)]
    tree.check()
    assert [len(node.tokens) for node in tree.path(leases[0])] == [2, 3, 1, 2]
    assert lease_slots(leases[0]) == list(range(8, 16))
    commit_all(tree)
    for lease in leases:
        tree.release(lease)
        tree.check()
    assert tree.used_pages == 4
    while tree.used_pages:
        assert tree.evict(1) > 0
        tree.check()


def test_a_prompt_that_is_a_prefix_of_another(tree: PrefixTree) -> None:
    longer = tree.acquire(NS, LONG)
    shorter = tree.acquire(NS, LONG[:10])
    assert tree.path(longer) == (shorter.node, longer.node)
    assert tree.num_tokens == 32
    assert tree.used_pages == 4
    tree.check()


def test_a_prompt_that_goes_on_behind_another_is_read_as_one_run(tree: PrefixTree) -> None:
    shorter = tree.acquire(NS, LONG[:10])
    longer = tree.acquire(NS, LONG)
    assert tree.path(longer) == (shorter.node, longer.node)
    assert shorter.node.runs + longer.node.runs == [Run(8, 10), Run(18, 22)]
    assert tree.used_pages == 4
    branch = tree.acquire(NS, [*LONG[:10], 1])
    assert branch.node.runs == [Run(40, 1)]
    tree.check()


def test_no_child_goes_on_behind_its_parent_where_it_would_not_be_one_run(tree: PrefixTree) -> None:
    shorter = tree.acquire(NS, LONG[:10])
    tree.acquire(OTHER, [1])
    longer = tree.acquire(NS, LONG)
    assert longer.node.runs == [Run(32, 22)]
    short = tree.acquire(NS, [*LONG[:10], 1, 2, 3])
    assert short.node.runs == [Run(18, 3)]
    assert tree.path(short)[0] is shorter.node
    tree.check()


def test_three_requests_share_what_each_two_have_in_common(tree: PrefixTree) -> None:
    for tokens in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7]):
        tree.acquire(NS, tokens)
        tree.check()
    assert paths(tree) == [(1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 6), (7,)]
    assert tree.num_tokens == 7


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        Namespace("other", "float32"),
        Namespace("model", "bfloat16"),
        Namespace("model", "float32", positions="relative"),
        Namespace("model", "float32", adapter="a"),
    ],
)
def test_namespaces_never_share(tree: PrefixTree, other: Namespace) -> None:
    mine = tree.acquire(NS, LONG)
    assert tree.match(other, LONG).length == 0
    theirs = tree.acquire(other, LONG)
    assert theirs.node is not mine.node
    assert not set(lease_slots(mine)) & set(lease_slots(theirs))
    assert list(tree.nodes(other)) == [theirs.node]
    assert list(tree.nodes(NS)) == [mine.node]
    assert list(tree.nodes(Namespace("nobody", "x"))) == []
    tree.check()


def test_namespaces_are_compared_by_key_and_not_by_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Namespace, "__hash__", lambda self: 0)
    tree = PrefixTree(64, 8)
    tree.acquire(NS, LONG)
    assert tree.match(OTHER, LONG).length == 0
    assert tree.match(Namespace("model", "float32"), LONG).length == 32


def test_match_tells_length_computed_and_pages_and_changes_nothing(tree: PrefixTree) -> None:
    keep(tree, LONG[:24])
    lease = tree.acquire(NS, LONG)
    tree.commit(lease.node, 3)
    before = snapshot(tree)
    found = tree.match(NS, [*LONG[:29], 1])
    assert (found.length, found.computed) == (29, 27)
    assert found.path == tree.path(lease)
    assert (found.needed_pages, found.available_pages) == (1, 59)
    found = tree.match(NS, [*LONG[:25], 1])
    assert (found.length, found.computed) == (25, 25)
    found = tree.match(NS, [*LONG, *range(20)])
    assert (found.length, found.computed, found.needed_pages) == (32, 27, 3)
    assert tree.match(NS, []).length == 0
    assert snapshot(tree) == before


def test_match_foretells_what_acquire_does() -> None:
    for room in (0, 3, 40):
        for tokens in (LONG, LONG[:13], [*LONG[:13], 1, 2], [*LONG[:20], 3], [9]):
            tree = PrefixTree(8, 8)
            keep(tree, LONG[:20])
            keep(tree, [1, 2, 3])
            found = tree.match(NS, tokens, room)
            free = tree.free_pages
            tree.acquire(NS, tokens, room)
            assert tree.free_pages == max(0, free - found.needed_pages)
            assert tree.free_pages + tree.evictable_pages == (
                found.available_pages - found.needed_pages
            )
            tree.check()


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_any_sequence_of_integers_will_do(tree: PrefixTree, kind: type) -> None:
    lease = tree.acquire(NS, kind(LONG))
    assert all(type(token) is int for token in lease.node.tokens)
    assert tree.match(NS, kind(LONG)).length == 32
    tree.extend(lease, kind([1, 2]))
    assert lease.tokens == [*LONG, 1, 2]
    assert all(type(token) is int for token in lease.node.tokens)


@pytest.mark.parametrize("tokens", ["text", (1.5,), (None,)])
def test_what_is_no_token_is_refused(tree: PrefixTree, tokens: object) -> None:
    with pytest.raises(TypeError):
        tree.acquire(NS, tokens)  # type: ignore[arg-type]
    tree.check()
    assert tree.stats().namespaces == 0


def test_negative_room_is_refused(tree: PrefixTree) -> None:
    with pytest.raises(ValueError, match="room is -1"):
        tree.acquire(NS, [1], room=-1)
    with pytest.raises(ValueError, match="room is -1"):
        tree.match(NS, [1], room=-1)


def test_a_prompt_larger_than_the_pool_is_refused_by_name(tree: PrefixTree) -> None:
    before = snapshot(tree)
    with pytest.raises(OutOfPages, match=r"64 needed, 63 free and 0 evictable.*kv_memory"):
        tree.acquire(NS, list(range(505)))
    assert snapshot(tree) == before
    tree.acquire(NS, list(range(504)))
    assert tree.free_pages == 0


def test_out_of_pages_changes_nothing() -> None:
    tree = PrefixTree(9, 8)
    held = tree.acquire(NS, LONG[:12])
    keep(tree, [*LONG[:20], 1, 2, 3, 4])
    keep(tree, [7, 8, 9])
    before = snapshot(tree)
    for ns, tokens in (
        (NS, [*LONG[:16], *range(50)]),  # splits a kept node, whose upper half may not be evicted
        (NS, [*LONG[:6], *range(60)]),  # splits the held node
        (NS, [7, 8, *range(100, 155)]),
        (OTHER, list(range(60))),  # a namespace that does not exist yet
    ):
        with pytest.raises(OutOfPages) as caught:
            tree.acquire(ns, tokens, room=9)
        error = caught.value
        assert error.needed > error.free + error.evictable
        assert error.free == tree.free_pages
        assert snapshot(tree) == before
        tree.check()
    assert held.tokens == LONG[:12]


def test_acquire_never_evicts_its_own_path() -> None:
    tree = PrefixTree(7, 8)
    keep(tree, LONG[:16])  # the oldest, and the one to be evicted first
    keep(tree, list(range(32)))
    lease = tree.acquire(NS, [*LONG[:16], *range(30)])
    assert lease.node.parent is not None
    assert lease.node.parent.computed == 16
    assert tree.match(NS, list(range(32))).length == 0
    tree.check()


def test_acquire_evicts_the_half_it_does_not_need() -> None:
    tree = PrefixTree(5, 8)
    keep(tree, LONG)
    lease = tree.acquire(NS, [*LONG[:12], *range(16)])
    assert paths(tree) == [tuple(LONG[:12]), (*LONG[:12], *range(16))]
    assert lease.length == 28
    tree.check()


def test_commit_goes_forward_and_downward(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG[:10])
    below = tree.acquire(NS, LONG)
    epoch = tree.epoch
    with pytest.raises(ValueError, match="parent is wholly computed"):
        tree.commit(below.node, 1)
    tree.commit(below.node, 0)
    tree.commit(lease.node, 4)
    tree.commit(lease.node, 4)
    for upto in (3, 11):
        with pytest.raises(ValueError, match=f"cannot commit {upto} of 10 tokens: 4 are"):
            tree.commit(lease.node, upto)
    with pytest.raises(ValueError, match="parent is wholly computed"):
        tree.commit(below.node, 1)
    tree.commit(lease.node, 10)
    tree.commit(below.node, 1)
    assert (lease.node.pending, below.node.pending, tree.computed_tokens) == (0, 21, 11)
    assert tree.epoch == epoch
    tree.check()


def test_commit_to_a_node_that_has_left_is_refused(tree: PrefixTree) -> None:
    lease = tree.acquire(NS, LONG)
    node = lease.node
    tree.release(lease)
    with pytest.raises(ValueError, match="has left the tree"):
        tree.commit(node, 5)
    tree.check()


@pytest.mark.parametrize("length", [0, 1, 2, 5, 64, 100])
def test_a_mismatch_is_found_wherever_it_is(length: int) -> None:
    held = list(range(length))
    assert common_prefix(held, [9, 9, *held], 2) == length
    assert common_prefix(held, [9, *held, 5], 1) == length
    for at in range(length):
        assert common_prefix(held, held[:at], 0) == at
        assert common_prefix(held, [*held[:at], -1, *held[at + 1 :]], 0) == at
        assert common_prefix(held, [*held[:at], -1], 0) == at


def test_a_node_tells_its_slots() -> None:
    tree = PrefixTree(6, 4)
    blocked = tree.acquire(NS, [1, 2, 3])
    tree.acquire(NS, [5])
    tree.extend(blocked, [4, 5, 6])
    node = blocked.node
    assert node.runs == [Run(4, 4), Run(12, 2)]
    assert [node.slot(at) for at in range(6)] == [4, 5, 6, 7, 12, 13]
    assert node.runs_between(2, 5) == [Run(6, 2), Run(12, 1)]
    assert node.runs_between(3, 3) == []
    for at in (-1, 6):
        with pytest.raises(IndexError):
            node.slot(at)
    assert "runs=[(4, 4), (12, 2)]" in repr(node)
