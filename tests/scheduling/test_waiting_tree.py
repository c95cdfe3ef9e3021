"""The waiting tree: what it knows of the cache survives whoever comes and goes in line."""

from __future__ import annotations

import random

import pytest

from foreword.scheduling._waiting_tree import WaitingTree
from tests.scheduling.doors import FakeDoor, candidate


def test_a_bound_survives_a_split_and_a_join() -> None:
    door, tree = FakeDoor(), WaitingTree()
    door.keep([1, 2, 3])
    door.keep([5])
    tree.add(candidate(0, [5, 9]))
    tree.add(candidate(1, [1, 2, 3, 4]))
    assert tree.best(door.match) == candidate(1, [1, 2, 3, 4])
    tree.add(candidate(2, [1, 7]))  # cuts the edge
    tree.remove(2)  # and mends it, before anybody matched it
    assert tree.best(door.match) == candidate(1, [1, 2, 3, 4])
    tree.add(candidate(3, [1, 2, 3, 4, 5]))
    tree.add(candidate(4, [1, 2, 3, 4, 6]))
    tree.remove(1)
    assert tree.best(door.match) == candidate(3, [1, 2, 3, 4, 5])
    tree.remove(3)
    assert tree.best(door.match) == candidate(4, [1, 2, 3, 4, 6])


def test_closed_groups_are_passed_over_without_a_match() -> None:
    door, tree = FakeDoor(), WaitingTree()
    door.keep([1, 2])
    for id in range(10):
        tree.add(candidate(id, [1, 2, id]), "a")
    tree.add(candidate(10, [3]), "b")
    assert tree.groups == {"a", "b"}
    assert tree.best(door.match) == candidate(0, [1, 2, 0])
    tree.close("a")
    before = door.matches
    assert tree.best(door.match) == candidate(10, [3])
    assert door.matches == before + 1
    tree.remove(10)
    assert tree.best(door.match) is None
    tree.open("a")
    assert tree.best(door.match) == candidate(0, [1, 2, 0])


def test_a_group_is_closed_before_its_first_member_and_after_its_last() -> None:
    door, tree = FakeDoor(), WaitingTree()
    tree.close("a")
    tree.add(candidate(0, [1]), "a")
    assert tree.best(door.match) is None
    tree.remove(0)
    tree.add(candidate(1, [1]), "a")
    assert tree.best(door.match) is None
    tree.open("a")
    assert tree.best(door.match) == candidate(1, [1])


@pytest.mark.parametrize("seed", range(30))
def test_the_best_of_the_open_groups(seed: int) -> None:
    """Against matching everybody, with evictions, in a line that is hardly ever empty.

    The ids do not count up here: nothing but the order of equals hangs on that.
    """
    chance = random.Random(seed)
    door, tree = FakeDoor(capacity=chance.choice([8, 20, 1000])), WaitingTree()
    line, closed = {}, set()
    for id in chance.sample(range(200), 200):
        path = [chance.randrange(2) for _ in range(chance.randrange(8))]
        line[id] = (candidate(id, path, scope=chance.choice("xxy")), chance.choice("abc"))
        tree.add(*line[id])
        for _ in range(chance.randrange(3)):
            what = chance.random()
            if what < 0.2:
                group = chance.choice("abc")
                closed ^= {group}
                (tree.close if group in closed else tree.open)(group)
            elif what < 0.4:
                door.evict(chance.randrange(6))
            elif what < 0.5 and line:
                gone = chance.choice(sorted(line))
                tree.remove(gone)
                del line[gone]
            else:
                found = {
                    id: (-door.held(one.path, one.scope), id)
                    for id, (one, group) in line.items()
                    if group not in closed
                }
                best = tree.best(door.match)
                assert (best is None) == (not found)
                if best is not None:
                    assert best.id == min(found, key=found.__getitem__)
                    if door.offer(best) is not None:
                        tree.remove(best.id)
                        del line[best.id]
                        tree.cached(best.scope, best.path)
                        door.leave(best.id)
    assert len(tree) == len(line)
    assert all(id in tree for id in line)


def test_nodes_are_as_many_as_the_paths_need() -> None:
    tree = WaitingTree()
    paths = [[1] * length + [2] for length in range(1, 40)]
    for id, path in enumerate(paths):
        tree.add(candidate(id, path))
    for id in range(len(paths) - 1):
        tree.remove(id)
    (node,) = tree.roots[""].children.values()
    assert node.edge == paths[-1]
    assert not node.children
