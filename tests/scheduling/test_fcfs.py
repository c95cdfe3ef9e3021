"""First come, first served, and what every policy has from `LinePolicy`."""

from __future__ import annotations

from foreword.scheduling import FirstComeFirstServed
from tests.scheduling.doors import FakeDoor, candidate


def test_the_order_is_that_of_arrival() -> None:
    policy, door = FirstComeFirstServed(), FakeDoor(seats=2)
    door.keep([3, 3])
    for id, path in enumerate([[1], [2], [3, 3]]):
        policy.add(candidate(id, path))
    policy.admit(door)
    assert door.admitted == [0, 1]
    assert len(policy) == 1
    door.leave(0)
    policy.admit(door)
    assert door.admitted == [0, 1, 2]


def test_whoever_finds_no_room_keeps_the_others_waiting() -> None:
    policy, door = FirstComeFirstServed(), FakeDoor(capacity=4)
    policy.add(candidate(0, [1, 2, 3]))
    policy.add(candidate(1, [4, 5]))
    policy.add(candidate(2, [6]))
    policy.admit(door)
    assert door.offers == [(0, 3), (1, None)]
    policy.remove(1)
    policy.admit(door)
    assert door.admitted == [0, 2]
    assert len(policy) == 0
    assert policy  # empty, and a policy all the same


def test_preempted_requests_come_back_first_and_in_their_order() -> None:
    policy, door = FirstComeFirstServed(), FakeDoor(seats=2)
    policy.add(candidate(5, [1]))
    policy.add(candidate(4, [2], preempted=True))
    policy.add(candidate(2, [3], preempted=True))
    policy.add(candidate(3, [3], preempted=True))
    policy.remove(3)
    assert len(policy) == 3
    policy.admit(door)
    assert door.admitted == [2, 4]
    door.leave(2)
    policy.admit(door)
    assert door.admitted == [2, 4, 5]


def test_nobody_is_admitted_while_a_preempted_request_finds_no_room() -> None:
    policy, door = FirstComeFirstServed(), FakeDoor(capacity=4)
    door.offer(candidate(0, [1, 2, 3]))
    policy.add(candidate(1, [4, 5], preempted=True))
    policy.add(candidate(2, [6]))
    policy.admit(door)
    assert door.offers[1:] == [(1, None)]


def test_nothing_in_line_is_nothing_to_do() -> None:
    policy, door = FirstComeFirstServed(), FakeDoor()
    policy.admit(door)
    policy.produced({7: 1})
    policy.left(7, "finished")
    assert door.offers == []
