"""What of a tree is shown: the right nodes, under names that stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreword.cache import Lease, Namespace, PrefixTree
from foreword.serving.http.live import _live_tree
from foreword.serving.http.live._live_tree import Sight, TreeWatch

COMMON = Namespace("m", "f")


def keep(tree: PrefixTree, tokens: list[int], ns: Namespace = COMMON) -> None:
    """Compute a text and let it go."""
    tree.release(hold(tree, tokens, ns))


def hold(tree: PrefixTree, tokens: list[int], ns: Namespace = COMMON) -> Lease:
    lease = tree.acquire(ns, tokens)
    for node in tree.path(lease):
        tree.commit(node, len(node.tokens))
    return lease


def paths(tree: PrefixTree, *leases: Lease, tenant: str = "t") -> list[tuple[str, tuple]]:
    return [(tenant, tree.path(lease)) for lease in leases]


def by_start(sight: Sight) -> dict[tuple[int, int], int]:
    """Ids by first token and start."""
    return {(block.head[0], block.start): block.id for block in sight.blocks}


def test_a_trunk_and_its_branches():
    tree, watch = PrefixTree(64), TreeWatch()
    first, second = hold(tree, [1, 2, 3, 10, 11]), hold(tree, [1, 2, 3, 20])
    keep(tree, [1, 2, 3, 30, 31])
    blocks = watch.look(tree, paths(tree, first, second)).blocks
    trunk, *branches = blocks
    assert (trunk.parent, trunk.start, trunk.tokens, trunk.readers) == (None, 0, 3, 2)
    assert trunk.tenants == (("t", 2),)
    assert [(b.parent, b.start, b.head, b.readers) for b in branches] == [
        (trunk.id, 3, (30, 31), 0),
        (trunk.id, 3, (20,), 1),
        (trunk.id, 3, (10, 11), 1),
    ]


def test_a_split_keeps_the_lower_name_and_gives_the_upper_half_a_new_one():
    tree, watch = PrefixTree(64), TreeWatch()
    keep(tree, [1, 2, 3, 4])
    before = by_start(watch.look(tree, []))[1, 0]
    keep(tree, [1, 2, 9])
    after = by_start(watch.look(tree, []))
    assert after[3, 2] == before
    assert after[1, 0] != before


def test_what_is_dropped_is_named_and_what_is_joined_is_not():
    tree, watch = PrefixTree(64), TreeWatch()
    keep(tree, [5, 6, 7])
    gone = watch.look(tree, []).blocks[0].id
    tree.clear()
    assert watch.look(tree, []).dropped == (gone,)
    one, other = hold(tree, [1, 2]), hold(tree, [1, 2])
    tree.extend(one, [3])
    assert len(watch.look(tree, []).blocks) == 2
    tree.extend(other, [3, 4])  # nobody ends in [1, 2] any more: it becomes one with what follows
    sight = watch.look(tree, [])
    assert [block.head for block in sight.blocks] == [(1, 2, 3), (4,)]
    assert sight.dropped == (gone,)


def test_a_namespace_parts_what_is_equal():
    tree, watch = PrefixTree(64), TreeWatch()
    keep(tree, [1, 2])
    keep(tree, [1, 2], Namespace("m", "f", salt="s"))
    blocks = watch.look(tree, []).blocks
    assert [(block.parent, block.namespace.salt) for block in blocks] == [(None, "s"), (None, "")]


def test_the_best_are_shown_and_the_others_are_summed_up():
    tree, watch = PrefixTree(512), TreeWatch(limit=4)
    held = hold(tree, [1, 2, 100])
    for last in range(3, 43):
        keep(tree, [1, 2, last])
    late = by_start(watch.look(tree, paths(tree, held)))
    assert set(late) == {(1, 0), (100, 2), (42, 2), (41, 2)}  # the one that is read, the latest
    sight = watch.look(tree, paths(tree, held))
    assert sight.hidden_nodes == 38
    assert sight.hidden_tokens == 38
    assert sight.blocks[0].more == 38


def test_a_look_has_an_end(monkeypatch):
    monkeypatch.setattr(_live_tree, "LOOKS", 10)
    tree, watch = PrefixTree(512), TreeWatch()
    for first in range(50):
        keep(tree, [first])
    sight = watch.look(tree, [])
    assert len(sight.blocks) == 9  # and the root
    assert sight.hidden_nodes == 41


def test_a_long_node_shows_its_two_ends():
    tree, watch = PrefixTree(512), TreeWatch()
    keep(tree, list(range(100)))
    block = watch.look(tree, []).blocks[0]
    assert block.head == tuple(range(32))
    assert block.tail == tuple(range(92, 100))
    assert block.tokens == 100


def test_pins_are_told_where_they_end():
    tree, watch = PrefixTree(64), TreeWatch()
    short, long = hold(tree, [1, 2]), hold(tree, [1, 2, 3])
    keep(tree, [1, 2, 3, 4])
    pins = [("short", tree.path(short)), ("long", tree.path(long))]
    blocks = watch.look(tree, [], pins).blocks
    assert [(b.head, b.pinned, b.pins) for b in blocks] == [
        ((1, 2), True, ("short",)),
        ((3,), True, ("long",)),
        ((4,), False, ()),
    ]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=25),
    st.sets(st.integers(0, 24)),
    st.integers(1, 30),
)
def test_parents_come_first_and_nothing_better_is_left_out(texts, running, limit):
    tree = PrefixTree(1024)
    leases = []
    for i, text in enumerate(texts):
        if i in running:
            leases.append(hold(tree, text))
        else:
            keep(tree, text)
    sight = TreeWatch(limit).look(tree, paths(tree, *leases))
    stats = tree.stats()
    assert len(sight.blocks) == min(limit, stats.nodes)
    assert sight.hidden_nodes == stats.nodes - len(sight.blocks)
    seen = set()
    for block in sight.blocks:
        assert block.parent is None or block.parent in seen
        seen.add(block.id)
    nodes = {(node.start, *path_of(node)): node for node in tree.nodes()}
    assert sum(block.more for block in sight.blocks) <= sight.hidden_nodes
    weights = sorted(((n.pins, n.last_used) for n in nodes.values()), reverse=True)
    shown_readers = sorted((block.readers for block in sight.blocks), reverse=True)
    assert shown_readers == [pins for pins, _ in weights[: len(sight.blocks)]]


def path_of(node) -> tuple[int, ...]:
    return () if node.parent is None else (*path_of(node.parent), *node.tokens)
