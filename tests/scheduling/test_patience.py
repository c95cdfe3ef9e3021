"""Patience of DLPM: nobody starves behind better matches, and the tenants' bounds still hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.scheduling import (
    Candidate,
    DeficitLongestPrefixMatch,
    FirstComeFirstServed,
    LongestPrefixMatch,
    Policy,
    dlpm_bound,
    make_policy,
)
from foreword.scheduling._waiting_tree import WaitingTree
from tests.scheduling.doors import FakeDoor, candidate
from tests.scheduling.play import Play


def stream(policy: Policy, elders: int = 1, length: int = 200) -> int | None:
    """A cold request behind so many others, then one perfect match after the other.

    Returns:
        Which admission the cold one is, from 1; None if it never is.
    """
    door = FakeDoor(seats=1)
    door.keep([7, 7, 7])
    for id in range(elders):
        policy.add(candidate(id, [7, 7, 7], tenant="a"))
    policy.add(candidate(elders, [9], tenant="a"))
    for id in range(elders + 1, elders + 1 + length):
        policy.add(candidate(id, [7, 7, 7], tenant="a"))
        policy.admit(door)
        door.leave(door.admitted[-1])
        policy.left(door.admitted[-1], "finished")
    return door.admitted.index(elders) + 1 if elders in door.admitted else None


@pytest.mark.parametrize("elders", [0, 1, 9])
def test_a_stream_of_perfect_matches_starves_a_cold_request_unless_patience_ends(
    elders: int,
) -> None:
    place = elders + 1
    assert stream(DeficitLongestPrefixMatch(), elders) is None
    assert stream(DeficitLongestPrefixMatch(patience=1), elders) == place
    # passed over 2 * place times, in which the elders were served already
    assert stream(DeficitLongestPrefixMatch(patience=3), elders) == 2 * place + 1 <= 3 * place
    assert stream(make_policy("dlpm:patience=3"), elders) == 2 * place + 1


def test_the_overdue_go_in_order_of_arrival_and_then_the_best_match_again() -> None:
    policy, door = DeficitLongestPrefixMatch(patience=2), FakeDoor(seats=1)
    door.keep([7, 7])
    for id, path in enumerate([[1], [2], [3], [7, 7], [7, 7], [7, 7], [7], [7]]):
        policy.add(candidate(id, path))
    while len(policy):
        policy.admit(door)
        door.leave(door.admitted[-1])
    # 3 passes 0 over, which was first in line: overdue. 4 passes 1 over for the third time, 2 too.
    assert door.admitted[:2] == [3, 0]
    assert door.admitted[2:] == [1, 2, 4, 5, 6, 7]


def test_an_overdue_request_waits_for_its_tenants_credit() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=5, patience=1), FakeDoor(seats=1)
    policy.add(candidate(0, [1] * 6, tenant="a"))
    policy.add(candidate(1, [2], tenant="b"))
    policy.admit(door)
    assert policy.deficits == {"a": -1, "b": 5}
    policy.add(candidate(2, [3], tenant="a"))
    for id in range(3, 9):
        policy.add(candidate(id, [id], tenant="b"))
    while len(policy):
        door.leave(door.admitted[-1])
        policy.admit(door)
    assert door.admitted == [0, 1, 3, 4, 5, 6, 2, 7, 8]


@pytest.mark.parametrize("refusals", [0, 20])
def test_refused_offers_change_nothing(refusals: int) -> None:
    policy, door = DeficitLongestPrefixMatch(patience=2), FakeDoor(capacity=10, seats=2)
    door.offer(candidate(90, [7] * 8))
    policy.add(candidate(0, [1] * 6))
    policy.add(candidate(1, [2] * 6))
    for _ in range(refusals):
        policy.admit(door)
    assert door.offers[1:] == [(0, None)] * refusals
    door.leave(90)
    door.most_seats = 1
    policy.add(candidate(2, [7] * 8))
    policy.add(candidate(3, [7] * 8))
    while len(policy):
        policy.admit(door)
        door.leave(door.admitted[-1])
    assert door.admitted == [90, 2, 0, 1, 3]  # as 0 was not overdue when 2 came


def test_an_overdue_request_that_finds_no_room_is_offered_again() -> None:
    policy, door = DeficitLongestPrefixMatch(patience=2), FakeDoor(capacity=10)
    door.offer(candidate(90, [7] * 5))
    for id, path in enumerate([[1] * 6, [7] * 5, [7] * 5]):
        policy.add(candidate(id, path))
    for _ in range(3):
        policy.admit(door)
    assert door.offers[1:] == [(1, 0), (0, None), (0, None), (0, None)]
    assert (policy.deficits, len(policy)) == ({"": 4000}, 2)
    door.leave(90)
    door.leave(1)
    policy.admit(door)
    assert door.admitted == [90, 1, 0]


def test_an_overdue_request_that_is_taken_back_is_forgotten() -> None:
    policy, door = DeficitLongestPrefixMatch(patience=1), FakeDoor()
    for id, tenant in enumerate("aabb"):
        policy.add(candidate(id, [id], tenant=tenant))
    policy.admit(FakeDoor(seats=0))
    policy.remove(0)
    policy.remove(2)
    policy.admit(door)
    assert door.admitted == [1, 3]
    policy.add(candidate(4, [4], tenant="a"))
    policy.remove(4)
    policy.admit(door)
    assert nothing_left(policy)


def test_overdue_and_refused_and_then_taken_back() -> None:
    policy, door = DeficitLongestPrefixMatch(patience=1), FakeDoor(capacity=5)
    door.offer(candidate(90, [7, 7]))
    policy.add(candidate(0, [1] * 5))
    policy.add(candidate(1, [2]))
    policy.admit(door)
    assert door.offers[1:] == [(0, None)]
    policy.remove(0)
    policy.admit(door)
    assert door.admitted == [90, 1]
    assert nothing_left(policy)


def test_the_preempted_neither_count_nor_pass_anybody_over() -> None:
    policy, door = DeficitLongestPrefixMatch(patience=2), FakeDoor(seats=1)
    door.keep([7, 7])
    for id in (90, 91, 92):
        policy.add(candidate(id, [8], preempted=True))
    policy.add(candidate(0, [1]))  # the first in line: one may pass it over
    for id in (1, 2, 3):
        policy.add(candidate(id, [7, 7]))
    while len(policy):
        policy.admit(door)
        door.leave(door.admitted[-1])
    assert door.admitted == [90, 91, 92, 1, 0, 2, 3]


def test_those_admitted_before_their_time_are_not_kept() -> None:
    for patience in (1, 1e300):
        policy, door = DeficitLongestPrefixMatch(patience=patience), FakeDoor()
        for id in range(3000):
            policy.add(candidate(id, [id]))
            policy.admit(door)
            policy.left(id, "finished")
        assert len(door.admitted) == 3000
        assert len(policy._patience._limits._heap) < 200  # type: ignore[union-attr]
        assert len(policy._tree._unmatched) < 200


def test_who_waits_unmatched_while_others_come_and_go_is_matched_in_the_end() -> None:
    tree, door = WaitingTree(), FakeDoor()
    door.keep([5, 5])
    tree.add(candidate(0, [1]))
    tree.add(candidate(1, [5, 5]))
    for id in range(2, 300):
        tree.add(candidate(id, [id]))
        tree.remove(id)
    best = tree.best(door.match)
    assert best is not None
    assert best.id == 1


# Under random load


class Judge(Play):
    """Knows the rule from its words alone, and counts who was passed over how often.

    Attributes:
        waits: of each admitted, its place in line when it came, and which admission it became,
            without those that went while it was overdue and had no credit.
    """

    def __init__(self, policy: DeficitLongestPrefixMatch, seats: int, capacity: int) -> None:
        super().__init__(policy, seats=seats, capacity=capacity)
        self.rule = policy
        self.line: dict[int, Candidate] = {}
        self.place: dict[int, int] = {}
        self.passed: dict[int, int] = {}
        self.excused: dict[int, int] = {}
        self.waits: dict[int, tuple[int, int]] = {}

    def arrive(self, candidate: Candidate, output: int) -> None:
        self.line[candidate.id] = candidate
        self.place[candidate.id] = len(self.line)
        self.passed[candidate.id] = self.excused[candidate.id] = 0
        super().arrive(candidate, output)

    def take_back(self, id: int) -> None:
        del self.line[id], self.waiting[id]
        self.rule.remove(id)

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        if candidate.preempted:
            return super().offer(candidate, spare=spare)
        credit = {c.id: self.rule.deficits[c.tenant] > 0 for c in self.line.values()}
        late = {id for id in self.line if self._overdue(id)}
        found = {c.id: self.held(c.path) for c in self.line.values()}
        best = min(
            (id for id in self.line if credit[id]),
            key=lambda id: (id not in late, 0 if id in late else -found[id], id),
        )
        assert candidate.id == best, f"offered {candidate.id}, the rule says {best}"
        missing = super().offer(candidate, spare=spare)
        if missing is not None:
            del self.line[candidate.id]
            for id in self.line:
                self.passed[id] += 1
                self.excused[id] += id in late and not credit[id]
            counted = self.passed[best] - self.excused[best] + 1
            self.waits[best] = self.place[best], counted
        return missing

    def _overdue(self, id: int) -> bool:
        return self.passed[id] + 1 > (self.rule.patience - 1) * self.place[id]


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("aab"), st.lists(st.integers(0, 1), max_size=6)),
        st.tuples(st.just("add"), st.sampled_from("abc"), st.just([5, 5, 5, 5])),
        st.tuples(st.just("step"), st.just(""), st.just([])),
        st.tuples(st.sampled_from(["step", "preempt", "remove"]), st.just(""), st.just([])),
    ),
    max_size=80,
)


def nothing_left(policy: DeficitLongestPrefixMatch) -> bool:
    book = policy._patience
    if book is not None and (len(book) or book._overdue):
        return False
    return not (policy._line or policy._tree.roots)


@settings(deadline=None, max_examples=300)
@given(
    MOVES,
    st.sampled_from([1, 3, 10, math.inf]),
    st.sampled_from([1, 1.25, 2, 3.5, 1e300, math.inf]),
    st.sampled_from([1, 3]),
    st.sampled_from([16, 1000]),
)
def test_nobody_waits_longer_than_patience_allows(
    moves: list[tuple[str, str, list[int]]],
    quantum: float,
    patience: float,
    seats: int,
    capacity: int,
) -> None:
    policy = DeficitLongestPrefixMatch(quantum=quantum, patience=patience)
    judge = Judge(policy, seats, capacity)
    for id, (what, tenant, path) in enumerate(moves):
        if what == "add":
            judge.arrive(candidate(id, path, tenant=tenant), 1 + id % 3)
        elif what == "step":
            judge.step()
        elif what == "preempt" and judge.runners:
            judge.preempt()
        elif what == "remove" and judge.line:
            judge.take_back(sorted(judge.line)[id % len(judge.line)])
    while judge.waiting or judge.runners:
        judge.step()
    assert all(counted <= patience * place for place, counted in judge.waits.values())
    assert judge.books.gap <= dlpm_bound(quantum, 6, 3 * seats)
    assert nothing_left(policy)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 1), max_size=4), max_size=40), st.data())
def test_with_one_tenant_patience_of_1_is_first_come_first_served_and_huge_is_longest_match(
    paths: list[list[int]], data: st.DataObject
) -> None:
    batch = data.draw(st.integers(1, 8))

    def order(policy: Policy) -> list[int]:
        door = FakeDoor(seats=1, capacity=30)
        for id, path in enumerate(paths):
            policy.add(candidate(id, path))
            if id % batch == 0:
                policy.admit(door)
                door.leave(door.admitted[-1])
        while len(door.admitted) < len(paths):
            policy.admit(door)
            door.leave(door.admitted[-1])
        return door.admitted

    assert order(DeficitLongestPrefixMatch(patience=1)) == order(FirstComeFirstServed())
    assert order(DeficitLongestPrefixMatch(patience=1e300)) == order(LongestPrefixMatch())
