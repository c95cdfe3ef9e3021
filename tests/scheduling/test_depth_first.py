"""Depth first against sorting the whole line."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.scheduling import Candidate, DepthFirst
from tests.scheduling.doors import FakeDoor, candidate

PATHS = st.lists(st.integers(0, 3), max_size=8)


def order_of(paths: list[list[int]], capacity: int = 1000, seats: int = 1) -> list[int]:
    policy, door = DepthFirst(), FakeDoor(capacity=capacity, seats=seats)
    for id, path in enumerate(paths):
        policy.add(candidate(id, path))
    serve(policy, door)
    return door.admitted


def serve(policy: DepthFirst, door: FakeDoor) -> None:
    while len(policy):
        policy.admit(door)
        for id in list(door.runners):
            door.leave(id)


def test_by_hand() -> None:
    paths = [[5, 5], [1, 2, 3], [5], [1, 9], [1, 2], [5, 5], [1, 2, 0]]
    #  1 2 -> 1 2 0 -> 1 2 3 -> 1 9 -> 5 -> 5 5 (the earlier) -> 5 5
    assert order_of(paths) == [4, 6, 1, 3, 2, 0, 5]


def test_arrivals_ahead_of_the_walk_join_it_and_those_behind_wait_for_the_next_round() -> None:
    policy, door = DepthFirst(), FakeDoor(seats=1)
    for id, path in enumerate([[1, 1], [3, 1], [5, 1]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    door.leave(0)
    policy.admit(door)  # the walk stands at [3, 1]
    for id, path in enumerate([[2], [3, 1, 4], [3, 2], [3, 0], [3], [3, 1], [4]], start=10):
        policy.add(candidate(id, path))
    door.leave(1)
    serve(policy, door)
    assert door.admitted[2:] == [15, 11, 12, 16, 2, 10, 14, 13]


def test_the_walk_remembers_its_place_though_the_path_grows() -> None:
    policy, door = DepthFirst(), FakeDoor(seats=1)
    path = [1]
    policy.add(Candidate(0, path, 1, 9))
    policy.add(candidate(1, [1, 5]))
    policy.add(candidate(2, [1, 7]))
    policy.admit(door)
    path.append(6)  # the engine writes its tokens behind the prompt
    door.leave(0)
    policy.admit(door)
    assert door.admitted == [0, 1]


def test_one_scope_after_the_other_in_order_of_appearance() -> None:
    policy, door = DepthFirst(), FakeDoor(seats=1)
    for id, scope in enumerate("babcb"):
        policy.add(candidate(id, [9 - id], scope=scope))
    policy.admit(door)
    assert door.admitted == [4]
    policy.remove(1)  # scope a is gone, and comes back as the last one
    policy.add(candidate(5, [0], scope="a"))
    door.leave(4)
    serve(policy, door)
    assert door.admitted == [4, 2, 0, 3, 5]


def test_a_scope_that_ran_out_hands_on_to_the_next() -> None:
    policy, door = DepthFirst(), FakeDoor(seats=1)
    for id, scope in enumerate("abc"):
        policy.add(candidate(id, [1], scope=scope))
    policy.admit(door)
    door.leave(0)
    policy.admit(door)
    door.leave(1)
    policy.add(candidate(3, [1], scope="b"))  # a new number: behind c
    serve(policy, door)
    assert door.admitted == [0, 1, 2, 3]


def test_whoever_finds_no_room_keeps_the_others_waiting() -> None:
    policy, door = DepthFirst(), FakeDoor(capacity=4)
    for id, path in enumerate([[1, 2], [2, 2, 2], [3]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    assert door.offers == [(0, 2), (1, None)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(PATHS, st.sampled_from("xy")), max_size=40), st.randoms())
def test_every_offer_is_the_next_in_sorted_circular_order(
    arrivals: list[tuple[list[int], str]], chance: random.Random
) -> None:
    policy, door = DepthFirst(), FakeDoor(seats=1, capacity=20)
    line: dict[int, tuple[list[int], str]] = {}
    numbers: dict[str, int] = {}  # scopes, numbered anew whenever they come back into line
    last: tuple[int, list[int], int] | None = None
    pending = list(enumerate(arrivals))
    while line or pending:
        if pending and (not line or chance.random() < 0.5):
            id, (path, scope) = pending.pop()
            if scope not in (there for _, there in line.values()):
                numbers[scope] = max(numbers.values(), default=0) + 1
            line[id] = (path, scope)
            policy.add(candidate(id, path, scope=scope))
        elif chance.random() < 0.2:
            id = chance.choice(sorted(line))
            del line[id]
            policy.remove(id)
        else:
            places = sorted((numbers[scope], path, id) for id, (path, scope) in line.items())
            later = [place for place in places if last is None or place > last]
            last = (later or places)[0]
            policy.admit(door)
            assert door.admitted[-1] == last[2]
            del line[last[2]]
            door.leave(last[2])
    assert len(policy) == 0
    assert not policy._tree.roots
    assert not policy._tree._scopes


@settings(deadline=None, max_examples=200)
@given(st.lists(PATHS, min_size=1, max_size=40))
def test_a_cache_for_one_path_is_enough_to_compute_every_prefix_once(
    paths: list[list[int]],
) -> None:
    policy, door = DepthFirst(), FakeDoor(capacity=max(map(len, paths)), seats=1)
    for id, path in enumerate(paths):
        policy.add(candidate(id, path))
    serve(policy, door)
    distinct = {tuple(path[: end + 1]) for path in paths for end in range(len(path))}
    assert door.computed == len(distinct)
