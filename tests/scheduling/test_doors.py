"""The stand-in itself: what the other tests take for granted about it."""

from __future__ import annotations

from tests.scheduling.doors import FakeDoor, candidate


def test_an_offer_announces_what_the_cache_lacks() -> None:
    door = FakeDoor(unit=4)
    assert door.offer(candidate(0, [1, 2, 3], tokens=10)) == 10
    assert door.offer(candidate(1, [1, 2, 9], tokens=10)) == 2
    assert door.offer(candidate(2, [1, 2, 9], tokens=10)) == 0
    assert door.offer(candidate(3, [1, 2, 9], tokens=10, scope="other")) == 10
    assert door.match(candidate(4, [1, 2, 8])) == 2
    assert (door.computed, door.admitted, door.matches) == (22, [0, 1, 2, 3], 1)


def test_room_is_what_nobody_uses() -> None:
    door = FakeDoor(capacity=6)
    door.keep([1, 2, 3])
    assert door.available == 6
    assert door.offer(candidate(0, [1, 2, 4])) == 1  # [1, 2] is in use now, [3] may go
    assert door.available == 3
    assert door.offer(candidate(1, [5, 6, 7]), spare=1) is None
    assert door.offer(candidate(1, [5, 6, 7])) == 3
    assert door.held([1, 2, 3]) == 2  # [3] had to go
    assert door.offer(candidate(2, [8])) is None
    door.leave(0)
    assert door.available == 3
    assert door.offer(candidate(2, [8])) == 1


def test_the_least_recently_used_leaf_goes_first() -> None:
    door = FakeDoor(capacity=6)
    door.keep([1, 2])
    door.keep([3, 4])
    door.keep([1, 2])
    assert door.evict(1) == 1
    assert (door.held([1, 2]), door.held([3, 4])) == (2, 1)
    assert door.evict(2) == 2
    assert (door.held([1, 2]), door.held([3, 4])) == (1, 0)


def test_a_hold_keeps_a_prefix_and_seats_are_counted() -> None:
    door = FakeDoor(capacity=4, seats=1)
    one = candidate(0, [1, 2])
    assert door.offer(one) == 2
    hold = door.hold(one, 1)
    assert door.offer(candidate(1, [1])) is None
    door.leave(0)
    assert door.available == 3
    assert door.evict(9) == 1
    hold.release()
    assert door.available == 4


def test_what_runners_write_takes_room() -> None:
    door = FakeDoor(capacity=4)
    door.keep([7, 8])
    door.offer(candidate(0, [1]))
    assert door.write(0, 3)
    assert door.held([7]) == 0
    assert not door.write(0, 1)
    door.leave(0)
    assert door.available == 4
