"""DLPM: Algorithm 1 by hand, what it leaves open, and its bounds under random load."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword import ForewordError
from foreword.scheduling import (
    DeficitLongestPrefixMatch,
    LongestPrefixMatch,
    Policy,
    VirtualTokenCounter,
    dlpm_bound,
)
from tests.scheduling.doors import FakeDoor, candidate
from tests.scheduling.play import Play


def add(policy: Policy, *requests: tuple[int, str, list[int]]) -> None:
    for id, tenant, path in requests:
        policy.add(candidate(id, path, tenant=tenant))


def test_everybody_is_served_on_credit_that_is_left() -> None:
    """Quantum 4 and three requests of 3 tokens: the last of a tenant may go below 0."""
    policy, door = DeficitLongestPrefixMatch(quantum=4), FakeDoor()
    add(policy, (0, "a", [1, 1, 1]), (1, "a", [2, 2, 2]), (2, "b", [3, 3, 3]))
    policy.admit(door)
    assert door.admitted == [0, 1, 2]
    assert policy.deficits == {"a": 4 - 3 - 3, "b": 4 - 3}
    assert policy.refills == 1


def test_the_longest_match_goes_first_until_the_credit_is_gone() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=2), FakeDoor()
    door.keep([1, 2, 3, 4])
    add(policy, (0, "b", [9, 9, 9]), (1, "a", [1, 2, 3, 4, 5]), (2, "a", [1, 2, 3, 4, 6]))
    add(policy, (3, "a", [1, 2, 3, 4, 7]), (4, "b", [8, 8]))
    policy.admit(door)
    # a 2, 1, 0: out of credit, so b 2, -1. Refill: a 2, b 1. a again, 1. Then b, 1 - 2.
    assert door.admitted == [1, 2, 0, 3, 4]
    assert policy.deficits == {"a": 1, "b": -1}
    assert policy.refills == 2


def test_cached_tokens_are_free_and_the_first_to_need_them_pays() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=100), FakeDoor(unit=4)
    policy.add(candidate(0, [1, 2, 3], tokens=10, tenant="a"))
    policy.add(candidate(1, [1, 2, 3], tokens=10, tenant="b"))
    policy.add(candidate(2, [1, 2, 7], tokens=11, tenant="b"))
    policy.admit(door)
    assert policy.deficits == {"a": 90, "b": 97}


def test_written_tokens_are_charged_by_their_weight() -> None:
    policy = DeficitLongestPrefixMatch(quantum=100, extend_weight=3, output_weight=5)
    add(policy, (0, "a", [1, 2]), (1, "b", [3]))
    policy.admit(FakeDoor())
    policy.produced({0: 2, 1: 1, 99: 7})
    assert policy.deficits == {"a": 100 - 3 * 2 - 5 * 2, "b": 100 - 3 - 5}


def test_a_deep_debtor_takes_several_refills_made_at_once() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=2), FakeDoor(seats=1)
    add(policy, (0, "a", [1] * 9), (1, "a", [2]))
    policy.admit(door)
    assert (policy.deficits, policy.refills) == ({"a": -7}, 1)
    door.leave(0)
    policy.admit(door)
    assert (policy.deficits, policy.refills) == ({"a": -7 + 4 * 2 - 1}, 5)


def test_a_refill_reaches_debtors_who_stay_below_and_those_not_in_line() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=2), FakeDoor()
    add(policy, (0, "a", [1] * 9), (1, "c", [2] * 5))
    policy.admit(door)
    assert policy.deficits == {"a": -7, "c": -3}
    add(policy, (2, "a", [3]), (3, "b", [4]), (4, "b", [5]))
    policy.admit(door)
    # b takes one refill, and with it a stands at -5, c at -1. b 2, 1, 0. Then three for a, at 1;
    # one of them is enough for c, and for b.
    assert door.admitted == [0, 1, 3, 4, 2]
    assert policy.refills == 1 + 1 + 3
    assert policy.deficits == {"a": 0, "b": 2, "c": 1}


def test_no_refill_while_somebody_in_line_has_credit() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=5), FakeDoor(capacity=12)
    add(policy, (0, "a", [1] * 6), (1, "b", [2]))
    policy.admit(door)
    assert policy.deficits == {"a": -1, "b": 4}
    add(policy, (2, "a", [3]), (3, "b", [4]))
    policy.admit(door)  # only b has credit; with its line empty, a is refilled
    assert (door.admitted[2:], policy.deficits) == ([3, 2], {"a": 3, "b": 3})
    policy.produced({2: 2})
    add(policy, (4, "b", [5] * 9), (5, "a", [6]))
    for _ in range(3):
        policy.admit(door)  # b has credit and finds no room: that ends it, and a gets nothing
    assert door.offers[4:] == [(4, None)] * 3
    assert (policy.deficits, policy.refills) == ({"a": -1, "b": 3}, 2)


def test_who_comes_back_keeps_its_debt_but_no_more_than_a_quantum_of_credit() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=10), FakeDoor()
    add(policy, (0, "a", [1] * 35), (1, "b", [2]))
    policy.admit(door)
    assert policy.deficits == {"a": -25, "b": 9}
    for id in (0, 1):
        door.leave(id)
        policy.left(id, "finished")
    add(policy, (2, "a", [3]))
    assert policy.deficits["a"] == -25
    policy.remove(2)
    for id in range(3, 40):  # 37 tokens of b: four refills
        add(policy, (id, "b", [id]))
        policy.admit(door)
    assert policy.refills == 1 + 3
    assert policy.deficits == {"a": 5, "b": 2}  # two for what it owed, one that is credit
    for id in range(40, 80):
        add(policy, (id, "b", [id]))
        policy.admit(door)
    assert policy.deficits["a"] == 5


def test_weights_are_shares() -> None:
    policy = DeficitLongestPrefixMatch(quantum=4, weights={"a": 3})
    door = FakeDoor(seats=48)
    for id in range(80):
        add(policy, (id, "ab"[id % 2], [id]))
    policy.admit(door)
    tenants = ["ab"[id % 2] for id in door.admitted]
    assert (tenants.count("a"), tenants.count("b")) == (36, 12)


def test_an_infinite_quantum_is_longest_prefix_match() -> None:
    orders = []
    for policy in (DeficitLongestPrefixMatch(quantum=math.inf), LongestPrefixMatch()):
        door = FakeDoor(capacity=30, seats=1)
        for id in range(60):
            add(policy, (id, "abc"[id % 3], [id % 7] * (id % 5) + [id]))
        while len(policy):
            policy.admit(door)
            policy.produced({door.admitted[-1]: 3})
            door.leave(door.admitted[-1])
        orders.append(door.admitted)
    assert orders[0] == orders[1]


def test_a_call_ends_when_the_first_offer_is_refused() -> None:
    policy, door = DeficitLongestPrefixMatch(), FakeDoor(capacity=5)
    add(policy, (0, "a", [1, 1]), (1, "b", [2] * 4), (2, "a", [3]))
    policy.admit(door)
    assert door.offers == [(0, 2), (1, None)]
    assert (policy.deficits, policy.refills) == ({"a": 3998, "b": 4000}, 1)


def test_seats_that_are_taken_cost_no_refill() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=1), FakeDoor(seats=1)
    add(policy, (0, "a", [1]), (1, "a", [2]))
    policy.admit(door)
    policy.admit(door)
    assert (policy.deficits, policy.refills) == ({"a": 0}, 1)


# What is charged and what is given back


def test_preempted_requests_come_back_without_credit_and_without_a_charge() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=4), FakeDoor(capacity=20)
    add(policy, (0, "a", [1] * 9), (1, "b", [2] * 2))
    policy.admit(door)
    policy.produced({0: 1})
    door.leave(0)
    policy.left(0, "preempted", 0)
    add(policy, (2, "b", [3]))
    policy.add(candidate(0, [1] * 9 + [5], tenant="a", preempted=True))
    assert policy.deficits == {"a": -7, "b": 2}
    policy.admit(door)
    assert door.admitted == [0, 1, 0, 2]
    assert policy.deficits == {"a": -7, "b": 1}
    policy.produced({0: 1})
    assert policy.deficits["a"] == -9


def test_a_cancelled_or_failed_runner_gets_back_what_was_not_computed() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=100), FakeDoor()
    add(policy, (0, "a", [1] * 30), (1, "b", [2] * 30), (2, "c", [3] * 30))
    policy.admit(door)
    policy.produced({0: 5})
    policy.left(0, "cancelled", 12)
    policy.left(1, "failed", 30)
    policy.left(2, "finished", 9)  # as good as computed, or it would not have finished
    assert policy.deficits == {"a": 100 - 30 - 10 + 12, "b": 100, "c": 70}


def test_a_refund_gives_credit_back() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=10), FakeDoor(seats=2)
    add(policy, (0, "a", [1] * 30), (1, "b", [2]), (2, "a", [3]), (3, "b", [4, 4]))
    policy.admit(door)
    assert (door.admitted, policy.deficits) == ([0, 1], {"a": -20, "b": 9})
    policy.left(0, "cancelled", 30)
    door.leave(0)
    policy.admit(door)
    assert (door.admitted, policy.deficits) == ([0, 1, 2], {"a": 9, "b": 9})


def test_no_refund_lifts_a_counter_above_the_quantum() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=10), FakeDoor()
    add(policy, (0, "a", [0] * 30))
    policy.admit(door)
    for id in (1, 2, 3):
        add(policy, (id, "b", [id] * 10))
    policy.admit(door)
    assert policy.deficits == {"a": 10, "b": 0}  # b's refills reached a too
    policy.left(0, "cancelled", 30)
    assert policy.deficits == {"a": 10, "b": 0}


def test_the_tenant_longest_away_is_forgotten() -> None:
    policy, door = DeficitLongestPrefixMatch(quantum=10, clients=1), FakeDoor()
    add(policy, (0, "a", [1] * 30), (1, "b", [2] * 30))
    policy.admit(door)
    policy.left(0, "finished")
    assert policy.deficits == {"a": -20, "b": -20}
    policy.left(1, "finished")
    assert policy.deficits == {"b": -20}
    add(policy, (2, "a", [3]))
    assert policy.deficits == {"a": 0, "b": -20}
    policy.admit(door)
    assert door.admitted == [0, 1, 2]


def test_a_preempted_request_nobody_knows_is_served_all_the_same() -> None:
    policy, door = DeficitLongestPrefixMatch(), FakeDoor()
    policy.add(candidate(0, [1], tenant="a", preempted=True))
    policy.admit(door)
    policy.produced({0: 1})
    policy.left(0, "finished")
    assert policy.deficits == {"a": -2}


# The bounds

TENANTS = st.lists(
    st.tuples(
        st.integers(0, 8),  # tokens of a prefix that all of its requests have in common
        st.integers(1, 5),  # tokens of its own
        st.integers(1, 6),  # tokens it writes
        st.integers(1, 25),  # requests
        st.integers(0, 20),  # steps until they come
        st.integers(1, 9),  # how many come per step
    ),
    min_size=2,
    max_size=4,
)
Tenants = list[tuple[int, int, int, int, int, int]]
PATIENCE = st.sampled_from([math.inf, 1, 1.5, 4])


def play_all(play: Play, tenants: Tenants, preemptions: Collection[int] = ()) -> Play:
    left = [requests for _, _, _, requests, _, _ in tenants]
    step = id = 0
    while any(left) or play.waiting or play.runners:
        for index, (shared, own, output, _, start, rate) in enumerate(tenants):
            for _ in range(min(left[index], rate) if step >= start else 0):
                path = [-1 - index] * shared + [id] * own
                play.arrive(candidate(id, path, tenant="abcd"[index]), output)
                id += 1
                left[index] -= 1
        if step in preemptions and play.runners:
            play.preempt()
        play.step()
        step += 1
    return play


@settings(deadline=None, max_examples=150)
@given(
    TENANTS,
    st.sampled_from([1, 1.5, 3, 10, 40]),
    st.integers(1, 5),
    st.sampled_from([20, 60, 10_000]),
    st.sets(st.integers(0, 60), max_size=10),
    PATIENCE,
)
def test_counters_stay_between_their_bounds_and_services_together(
    tenants: Tenants,
    quantum: float,
    seats: int,
    capacity: int,
    preemptions: set[int],
    patience: float,
) -> None:
    """Theorems A.1, 4.1 and 4.2, with answers alone as the tokens that runners may still write."""
    policy = DeficitLongestPrefixMatch(quantum=quantum, patience=patience)
    play = Play(policy, seats=seats, capacity=capacity)
    longest = max(shared + own for shared, own, *_ in tenants)
    running = seats * max(output for _, _, output, *_ in tenants)
    most = longest + 2 * running

    def check() -> None:
        assert all(-most < deficit <= quantum for deficit in policy.deficits.values())

    play.watch = check
    play_all(play, tenants, preemptions)
    assert play.books.gap <= dlpm_bound(quantum, longest, running)
    assert max(play.books.lags.values()) <= dlpm_bound(quantum, longest, running)
    assert not policy._tree.roots


FLOOD = [(40, 1, 1, 300, 0, 100), (0, 5, 2, 40, 0, 40)]


def test_a_flood_behind_a_shared_prefix_breaks_the_bound_of_longest_prefix_match() -> None:
    def gap(policy: Policy) -> float:
        return play_all(Play(policy, seats=3), FLOOD).books.gap

    bound = dlpm_bound(10, longest_input=41, most_running_tokens=3 * 2)
    assert gap(DeficitLongestPrefixMatch(quantum=10)) <= bound
    assert gap(LongestPrefixMatch()) > 2 * bound
    assert gap(DeficitLongestPrefixMatch(quantum=math.inf)) > 2 * bound


def test_a_small_quantum_is_fairer_and_a_large_one_computes_less() -> None:
    """Four tenants with a prefix each, and a cache for one of them."""
    tenants = [(30, 1, 1, 30, 0, 30)] * 4

    def outcome(policy: Policy) -> tuple[float, int]:
        play = play_all(Play(policy, seats=1, capacity=40), tenants)
        return play.books.gap, play.computed

    gaps, computed = zip(
        *[outcome(DeficitLongestPrefixMatch(quantum=q)) for q in (1, 40, 400)], strict=True
    )
    assert list(gaps) == sorted(gaps)
    assert list(computed) == sorted(computed, reverse=True)
    assert computed[0] > 2 * computed[2]
    assert outcome(VirtualTokenCounter())[1] > 2 * computed[1]  # it does not look at the cache


@settings(deadline=None, max_examples=60)
@given(TENANTS, st.sampled_from([1, 3, 10]), st.integers(1, 5), PATIENCE, st.randoms())
def test_who_cancels_gains_nothing_on_the_others(
    tenants: Tenants, quantum: float, seats: int, patience: float, chance: random.Random
) -> None:
    """Tenant a cancels some of its requests right after they were admitted."""
    policy = DeficitLongestPrefixMatch(quantum=quantum, patience=patience)
    play = Play(policy, seats=seats)

    def after_each_admission(admit: Callable[[], None] = play.admit) -> None:
        before = set(play.runners)
        admit()
        for id in set(play.runners) - before:
            if play.runners[id].tenant == "a" and chance.random() < 0.5:
                play.cancel(id)
        if not play.runners and play.waiting:
            after_each_admission()

    play.admit = after_each_admission  # type: ignore[method-assign]
    play_all(play, tenants)
    longest = max(shared + own for shared, own, *_ in tenants)
    running = seats * max(output for _, _, output, *_ in tenants)
    bound = dlpm_bound(quantum, longest, running)
    assert all(lag <= bound for (f, _), lag in play.books.lags.items() if f != "a")


def test_the_bound() -> None:
    assert dlpm_bound(10, 100, 30) == 2 * (100 + 2 * 30 + 10)
    assert dlpm_bound(10, 100, 30, extend_weight=2, output_weight=1) == 2 * (200 + 30 + 10)
    assert dlpm_bound(math.inf, 100, 30) == math.inf
    with pytest.raises(ForewordError, match="quantum is 0"):
        dlpm_bound(0, 100, 30)
    with pytest.raises(ForewordError, match="most_running_tokens is -1"):
        dlpm_bound(10, 100, -1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"quantum": 0}, "quantum is 0: it must be at least 1"),
        ({"quantum": -5}, "quantum is -5"),
        ({"quantum": math.nan}, "quantum is nan"),
        ({"quantum": "many"}, "quantum is 'many'"),
        ({"patience": 0.5}, "patience is 0.5: it must be at least 1"),
        ({"patience": math.nan}, "patience is nan"),
        ({"patience": None}, "patience is None"),
        ({"extend_weight": -1}, "extend_weight is -1"),
        ({"output_weight": None}, "output_weight is None"),
        ({"weights": {"a": -1}}, "tenant 'a' is -1"),
        ({"clients": 1.5}, "clients is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ForewordError, match=says):
        DeficitLongestPrefixMatch(**wrong)
