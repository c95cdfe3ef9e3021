"""Longest prefix match against matching everybody each time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import ForewordError
from foreword.scheduling import Candidate, LongestPrefixMatch, make_policy
from tests.scheduling.doors import FakeDoor, candidate


class JudgingDoor(FakeDoor):
    """Says of every offer whether it is the one that matching the whole line would choose."""

    def __init__(self, unit: int, capacity: int, seats: int) -> None:
        super().__init__(unit, capacity, seats)
        self.line: dict[int, Candidate] = {}

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        found = {c.id: self.held(c.path, c.scope) for c in self.line.values()}
        best = min(self.line, key=lambda id: (-found[id], id))
        assert candidate.id == best, f"offered {candidate.id}, the best is {best} of {found}"
        missing = super().offer(candidate, spare=spare)
        if missing is not None:
            del self.line[candidate.id]
        return missing


PATHS = st.lists(st.integers(0, 2), max_size=9)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PATHS, st.sampled_from("xxxy")),
        st.tuples(st.just("admit")),
        st.tuples(st.just("leave"), st.integers(0, 99)),
        st.tuples(st.just("remove"), st.integers(0, 99)),
        st.tuples(st.just("evict"), st.integers(1, 12)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(MOVES, st.sampled_from([10, 25, 1000]), st.sampled_from([1, 2, 9]))
def test_every_offer_is_the_best_match_of_the_whole_line(
    moves: list[tuple[object, ...]], capacity: int, seats: int
) -> None:
    policy, door = LongestPrefixMatch(), JudgingDoor(1, capacity, seats)
    for id, (what, *rest) in enumerate(moves):
        if what == "add":
            path, scope = rest
            door.line[id] = candidate(id, path, scope=scope)  # type: ignore[arg-type]
            policy.add(door.line[id])
        elif what == "admit":
            policy.admit(door)
        elif what == "evict":
            door.evict(rest[0])  # type: ignore[arg-type]
        elif what == "remove" and door.line:
            gone = sorted(door.line)[rest[0] % len(door.line)]  # type: ignore[operator]
            del door.line[gone]
            policy.remove(gone)
        elif what == "leave" and door.runners:
            gone = sorted(door.runners)[rest[0] % len(door.runners)]  # type: ignore[operator]
            door.leave(gone)
            policy.left(gone, "finished")
        assert len(policy) == len(door.line)
    while door.line:
        for id in list(door.runners):
            door.leave(id)
        waiting = len(door.line)
        policy.admit(door)
        assert len(door.line) < waiting, "nobody runs, and nobody got in"
    assert not policy._tree.roots  # nothing is left behind


def test_by_hand() -> None:
    policy, door = LongestPrefixMatch(), FakeDoor()
    door.keep([1, 2, 3])
    for id, path in enumerate([[9, 9], [1, 2, 7], [1, 2, 3, 4], [9, 9, 9], [1, 2, 7, 7]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    # 2 matches three elements; 1 and 4 match two, then 4 matches three of 1's; then 0, and 3 by 0.
    assert door.admitted == [2, 1, 4, 0, 3]


def test_of_equal_matches_the_earlier_request_goes_first() -> None:
    policy, door = LongestPrefixMatch(), FakeDoor(seats=3)
    door.keep([5])
    for id, path in enumerate([[1], [5, 1], [5, 2], [5, 3], [2]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    assert door.admitted == [1, 2, 3]


@pytest.mark.parametrize("name", ["lpm", "dlpm"])
def test_what_a_returning_request_computes_counts(name: str) -> None:
    policy, door = make_policy(name), FakeDoor(capacity=10)
    door.offer(candidate(0, [7] * 9))
    policy.add(candidate(2, [1, 1]))
    policy.add(candidate(3, [8, 8, 8]))
    policy.admit(door)  # nobody finds room, and nobody matches anything
    door.leave(0)
    policy.add(candidate(1, [8, 8], preempted=True))
    policy.admit(door)
    assert door.admitted == [0, 1, 3, 2]


def test_whoever_finds_no_room_keeps_the_others_waiting() -> None:
    policy, door = LongestPrefixMatch(), FakeDoor(capacity=5)
    door.offer(candidate(90, [1, 2]))
    policy.add(candidate(91, [3]))
    policy.add(candidate(92, [1, 2, 3, 4, 5, 6]))
    policy.admit(door)
    assert door.offers[1:] == [(92, None)]


def test_somebody_else_who_fills_the_cache_is_noticed() -> None:
    policy, door = LongestPrefixMatch(), FakeDoor(seats=1)
    for id, path in enumerate([[1, 2, 3], [4, 4, 4], [1, 2, 9]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    door.leave(0)
    door.keep([1, 2, 9])
    policy.admit(door)
    assert door.admitted == [0, 2]


def test_a_thousand_in_line_are_not_matched_again_for_each_admission() -> None:
    """20 prefixes of 30 elements, 50 requests each, a cache for six prefixes."""
    chance = random.Random(1)
    paths = [[head] * 30 + [1000 + id] for id in range(1000) for head in [chance.randrange(20)]]
    policy, door = LongestPrefixMatch(), FakeDoor(capacity=200, seats=1)
    for id, path in enumerate(paths):
        policy.add(candidate(id, path))
    while len(policy):
        policy.admit(door)
        door.leave(door.admitted[-1])
    assert door.computed == 20 * 30 + 1000  # every prefix once
    assert door.matches <= 3 * len(paths)


# The window


@settings(deadline=None, max_examples=150)
@given(st.lists(PATHS, min_size=1, max_size=40), st.integers(1, 6), st.randoms())
def test_nobody_is_overtaken_by_a_window_of_later_requests(
    paths: list[list[int]], window: int, chance: random.Random
) -> None:
    policy, door = LongestPrefixMatch(window=window), FakeDoor(capacity=40, seats=1)
    waiting: list[int] = []
    came = 0
    while waiting or came < len(paths):
        if came < len(paths) and (not waiting or chance.random() < 0.6):
            policy.add(candidate(came, paths[came]))
            waiting.append(came)
            came += 1
        elif waiting and chance.random() < 0.2:
            policy.remove(waiting.pop(chance.randrange(len(waiting))))
        else:
            policy.admit(door)
            waiting.remove(door.admitted[-1])
            door.leave(door.admitted[-1])
    for id in door.admitted:
        overtaken_by = [other for other in door.admitted[: door.admitted.index(id)] if other > id]
        assert len(overtaken_by) < window
    assert len(policy) == 0


def test_a_window_of_one_is_first_come_first_served() -> None:
    policy, door = LongestPrefixMatch(window=1), FakeDoor()
    door.keep([3, 3])
    for id, path in enumerate([[1], [2], [3, 3]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    assert door.admitted == [0, 1, 2]


def test_without_a_window_a_stranger_starves_and_with_one_it_does_not() -> None:
    def when_served(policy: LongestPrefixMatch) -> int | None:
        door = FakeDoor(seats=1)
        policy.add(candidate(0, [7]))
        policy.add(candidate(1, [7]))
        policy.add(candidate(2, [9]))  # the stranger
        for id in range(3, 103):
            policy.add(candidate(id, [7, id]))
            policy.admit(door)
            door.leave(door.admitted[-1])
            policy.left(door.admitted[-1], "finished")
        return door.admitted.index(2) if 2 in door.admitted else None

    assert when_served(LongestPrefixMatch()) is None
    assert when_served(LongestPrefixMatch(window=10)) == 11  # two elders, and nine who came later


@pytest.mark.parametrize("window", [0, -1, 1.5, "all", True])
def test_a_window_is_a_whole_number_above_zero(window: object) -> None:
    with pytest.raises(ForewordError, match=r"window is .* at least 1"):
        LongestPrefixMatch(window=window)  # type: ignore[arg-type]
