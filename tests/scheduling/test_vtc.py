"""The virtual token counter: its rules by hand, its bound under random load."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import ForewordError
from foreword.scheduling import (
    FirstComeFirstServed,
    LongestPrefixMatch,
    Policy,
    VirtualTokenCounter,
    vtc_bound,
)
from tests.scheduling.doors import FakeDoor, candidate
from tests.scheduling.play import Play


def add(policy: VirtualTokenCounter, *requests: tuple[int, str, int]) -> None:
    """Requests of (id, tenant, tokens), none of which shares anything."""
    for id, tenant, tokens in requests:
        policy.add(candidate(id, [id] * tokens, tenant=tenant))


def test_the_tenant_served_least_goes_first() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 5), (1, "a", 5), (2, "b", 2), (3, "b", 2), (4, "b", 2))
    policy.admit(door)
    # a and b at 0: the earlier. a 5; b 2, 4, 6; then a.
    assert door.admitted == [0, 2, 3, 4, 1]
    assert policy.counters == {"a": 10, "b": 6}


def test_of_equal_counters_the_earlier_request_goes_first() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "b", 1), (1, "a", 1), (2, "a", 1), (3, "b", 1))
    policy.admit(door)
    assert door.admitted == [0, 1, 2, 3]


def test_requests_taken_back_from_the_middle_of_a_line() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 1), (1, "a", 1), (2, "a", 1), (3, "a", 1), (4, "b", 9))
    policy.remove(1)
    policy.remove(3)
    policy.admit(door)
    assert door.admitted == [0, 4, 2]
    add(policy, (5, "a", 1))
    policy.remove(5)
    policy.admit(door)
    assert len(policy) == 0


def test_cached_prompts_are_charged_in_full_and_tokens_by_their_weight() -> None:
    policy, door = VirtualTokenCounter(input_weight=3, output_weight=4), FakeDoor()
    door.keep([0, 0])
    add(policy, (0, "a", 2))
    policy.admit(door)
    policy.produced({0: 2, 99: 1})
    assert policy.counters == {"a": 3 * 2 + 4 * 2}


def test_a_tenant_that_comes_back_is_lifted_to_the_least_of_those_in_line() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor(seats=2)
    add(policy, (0, "a", 10), (1, "b", 6), (2, "a", 1), (3, "b", 1))
    policy.admit(door)
    assert policy.counters == {"a": 10, "b": 6}
    add(policy, (4, "c", 1))
    assert policy.counters["c"] == 6
    add(policy, (5, "c", 1))  # in line already: no second lift
    policy.produced({1: 1})
    assert policy.counters == {"a": 10, "b": 8, "c": 6}
    policy.remove(4)
    policy.remove(5)
    add(policy, (6, "c", 1))
    assert policy.counters["c"] == 8


def test_with_nobody_in_line_it_is_lifted_to_the_one_admitted_last() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 10), (1, "b", 12))
    policy.admit(door)
    policy.produced({1: 1})
    add(policy, (2, "c", 1), (3, "a", 1), (4, "b", 1))
    assert policy.counters == {"c": 14, "a": 14, "b": 14}


def test_a_lift_never_takes_anything_away() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor(seats=1)
    add(policy, (0, "a", 10), (1, "b", 1))
    policy.admit(door)
    add(policy, (2, "a", 1))
    assert policy.counters == {"a": 10, "b": 0}


def test_weights_are_shares() -> None:
    policy = VirtualTokenCounter(weights={"a": 2}, output_weight=0)
    door = FakeDoor(seats=9)
    for id in range(20):
        add(policy, (id, "ab"[id % 2], 6))
    policy.admit(door)
    tenants = ["ab"[id % 2] for id in door.admitted]
    assert (tenants.count("a"), tenants.count("b")) == (6, 3)
    assert policy.counters == {"a": 18, "b": 18}


def test_written_tokens_are_shared_out_by_weight_too() -> None:
    policy, door = VirtualTokenCounter(weights={"a": 4}), FakeDoor()
    add(policy, (0, "a", 8), (1, "b", 8))
    policy.admit(door)
    policy.produced({0: 2, 1: 2})
    assert policy.counters == {"a": 3, "b": 12}
    policy.left(0, "cancelled", 4)
    policy.left(1, "cancelled", 4)
    assert policy.counters == {"a": 2, "b": 8}


def test_whoever_finds_no_room_keeps_the_others_waiting() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor(capacity=5)
    add(policy, (0, "a", 2), (1, "b", 4), (2, "a", 1))
    policy.admit(door)
    assert door.offers == [(0, 2), (1, None)]
    assert policy.counters == {"a": 2, "b": 0}


# What is charged and what is given back


def test_a_cancelled_runner_gets_back_what_was_not_computed() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 9), (1, "b", 9), (2, "c", 9))
    policy.admit(door)
    policy.produced({0: 1, 1: 1, 2: 1})
    policy.left(0, "cancelled", 4)
    policy.left(1, "failed", 0)
    policy.left(2, "finished")
    assert policy.counters == {"a": 7, "b": 11, "c": 11}
    policy.left(0, "cancelled", 4)  # it has left already
    assert policy.counters["a"] == 7


def test_a_refund_moves_its_tenant_forward() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor(seats=2)
    add(policy, (0, "a", 9), (1, "b", 5), (2, "b", 1), (3, "a", 1))
    policy.admit(door)
    policy.left(0, "cancelled", 9)
    door.leave(0)
    policy.admit(door)
    assert door.admitted == [0, 1, 3]


def test_a_preempted_request_is_not_charged_again() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 9))
    policy.admit(door)
    policy.produced({0: 1})
    door.leave(0)
    policy.left(0, "preempted", 3)
    policy.add(candidate(0, [0] * 10, tenant="a", preempted=True))
    assert policy.counters == {"a": 11}
    policy.admit(door)
    policy.produced({0: 1})
    assert policy.counters == {"a": 13}
    policy.left(0, "cancelled", 8)  # 8 of them again: at most the 3 that never were are given back
    assert policy.counters == {"a": 10}


def test_a_preempted_request_that_is_taken_back_gets_its_refund() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    add(policy, (0, "a", 9), (1, "a", 4))
    policy.admit(door)
    policy.left(0, "preempted", 3)
    policy.add(candidate(0, [0] * 9, tenant="a", preempted=True))
    policy.remove(0)
    assert policy.counters == {"a": 10}
    add(policy, (2, "a", 4))
    policy.remove(2)  # never admitted, never charged
    assert policy.counters == {"a": 10}


def test_the_tenant_longest_away_is_forgotten() -> None:
    policy, door = VirtualTokenCounter(clients=1), FakeDoor()
    add(policy, (0, "a", 5), (1, "b", 7), (2, "c", 1))
    policy.admit(door)
    policy.left(1, "finished")
    assert policy.counters == {"a": 5, "b": 7, "c": 1}
    policy.left(2, "finished")
    assert policy.counters == {"a": 5, "c": 1}
    policy.left(0, "finished")
    assert policy.counters == {"a": 5}
    add(policy, (3, "b", 1))  # c was admitted last, and stood at 1
    assert policy.counters["b"] == 1


def test_a_tenant_that_came_back_is_not_among_the_absent() -> None:
    policy, door = VirtualTokenCounter(clients=1), FakeDoor()
    add(policy, (0, "a", 5), (1, "b", 7))
    policy.admit(door)
    policy.left(0, "finished")
    add(policy, (2, "a", 1))
    policy.left(1, "finished")
    assert set(policy.counters) == {"a", "b"}


def test_a_preempted_request_nobody_knows_is_served_all_the_same() -> None:
    policy, door = VirtualTokenCounter(), FakeDoor()
    policy.add(candidate(0, [1], tenant="a", preempted=True))
    policy.admit(door)
    policy.produced({0: 1})
    policy.left(0, "finished")
    assert policy.counters == {"a": 2}


# The bound

TENANTS = st.lists(
    st.tuples(
        st.integers(1, 12),  # tokens of a prompt
        st.integers(1, 6),  # tokens it writes
        st.integers(1, 25),  # requests
        st.integers(0, 20),  # steps until they come
        st.integers(1, 9),  # how many come per step
    ),
    min_size=2,
    max_size=4,
)


def play_all(
    policy: Policy, tenants: list[tuple[int, int, int, int, int]], seats: int, preemptions: set[int]
) -> Play:
    play = Play(policy, seats=seats, price=lambda candidate, missing: candidate.tokens)
    left = [requests for _, _, requests, _, _ in tenants]
    step = id = 0
    while any(left) or play.waiting or play.runners:
        for index, (tokens, output, _, start, rate) in enumerate(tenants):
            for _ in range(min(left[index], rate) if step >= start else 0):
                play.arrive(candidate(id, [id] * tokens, tenant="abcd"[index]), output)
                id += 1
                left[index] -= 1
        if step in preemptions and play.runners:
            play.preempt()
        play.step()
        step += 1
    return play


@settings(deadline=None, max_examples=60)
@given(TENANTS, st.integers(1, 5), st.sets(st.integers(0, 60), max_size=10))
def test_tenants_in_line_are_served_alike_within_the_bound(
    tenants: list[tuple[int, int, int, int, int]], seats: int, preemptions: set[int]
) -> None:
    play = play_all(VirtualTokenCounter(), tenants, seats, preemptions)
    longest = max(tokens for tokens, *_ in tenants)
    running = seats * max(tokens + output for tokens, output, *_ in tenants)
    assert play.books.gap <= vtc_bound(longest, running)


FLOOD = [(4, 4, 200, 0, 40), (4, 4, 30, 1, 30)]


def test_a_flood_breaks_the_bound_of_those_who_do_not_count() -> None:
    bound = vtc_bound(4, 2 * 8)
    assert play_all(VirtualTokenCounter(), FLOOD, 2, set()).books.gap <= bound
    assert play_all(FirstComeFirstServed(), FLOOD, 2, set()).books.gap > 3 * bound
    assert play_all(LongestPrefixMatch(), FLOOD, 2, set()).books.gap > 3 * bound


def test_without_the_lift_time_away_would_be_credit() -> None:
    """b comes late, and must not catch up on what a was given while b was away."""
    late = [(4, 4, 100, 0, 100), (4, 4, 50, 40, 50)]
    assert play_all(VirtualTokenCounter(), late, 2, set()).books.gap <= vtc_bound(4, 2 * 8)


def test_the_bound() -> None:
    assert vtc_bound(100, 30) == 2 * 100
    assert vtc_bound(100, 60) == 2 * 120
    assert vtc_bound(100, 60, input_weight=2, output_weight=1) == 2 * 200
    with pytest.raises(ForewordError, match="longest_input is -1"):
        vtc_bound(-1, 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_weight": -1}, "input_weight is -1"),
        ({"output_weight": "two"}, "output_weight is 'two'"),
        ({"weights": {"a": 0}}, "tenant 'a' is 0"),
        ({"weights": {"a": float("inf")}}, "tenant 'a' must be finite"),
        ({"weights": 3}, "weights is 3"),
        ({"clients": -1}, "clients is -1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ForewordError, match=says):
        VirtualTokenCounter(**wrong)
