"""The desk admits whom the policy offers and memory takes, and loses nobody."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foreword.admission import Desk
from foreword.cache import PrefixTree
from foreword.scheduling import FirstComeFirstServed
from tests.admission.guests import Scripted, Visitor, visitor


def make(pages: int = 20, seats: int = 8, policy=None, page_size: int = 1, unit: int = 1):
    policy = Scripted() if policy is None else policy
    return Desk(PrefixTree(pages + 1, page_size), policy, seats, unit), policy


def compute(desk: Desk, guest: Visitor) -> None:
    for node in desk.tree.path(guest.lease):
        desk.tree.commit(node, len(node.tokens))


def test_an_offer_says_how_many_tokens_are_missing():
    desk, policy = make()
    for guest in (visitor(0, 1, 2, 3, 4), visitor(1, 1, 2, 9), visitor(2, 1, 2, 3, 4)):
        desk.add(guest)
    assert [g.arrival for g in desk.admit()] == [0, 1, 2]
    assert policy.offers == [(0, 4), (1, 1), (2, 0)]
    assert [desk.announced(g) for g in desk.running] == [4, 1, 0]
    assert not desk.waiting


def test_tokens_are_counted_in_units_and_never_beyond_the_length():
    desk, policy = make(unit=512)
    guest = visitor(0, 1, 2, 3)
    guest.unit = 500  # the last block is not full
    desk.add(guest)
    desk.admit()
    other = visitor(1, 1, 2, 4)
    other.unit = 500
    desk.add(other)
    desk.admit()
    assert policy.offers == [(0, 1500), (1, 1500 - 2 * 512)]


def test_seats_and_memory_limit_and_a_refused_offer_changes_nothing():
    desk, policy = make(pages=10, seats=2)
    first, big, third = visitor(0, 1, 2), visitor(1, *range(100, 109)), visitor(2, 1, 3)
    for guest in (first, big, third):
        desk.add(guest)
    assert desk.admit() == [first, third]
    assert policy.offers == [(0, 2), (1, None), (2, 1)]
    assert desk.waiting == {1: big}
    assert big.lease is None
    assert not big.started
    desk.tree.check()


def test_every_runner_keeps_a_page_to_grow_into():
    desk, _ = make(pages=6)
    desk.add(visitor(0, 1, 2))
    desk.admit()
    desk.add(visitor(1, 5, 6, 7))  # 3 of 4 pages: one is left, and two will want one
    assert desk.admit() == []
    desk.add(visitor(2, 5, 6))
    assert [g.arrival for g in desk.admit()] == [2]


def test_spare_memory_is_left_alone_unless_nobody_runs():
    desk, policy = make(pages=10, policy=Scripted(spare=8))
    desk.add(visitor(0, 1, 2, 3))
    assert desk.admit()  # alone, so the spare does not count
    desk.add(visitor(1, 4))
    assert not desk.admit()
    policy.spare = 6
    desk.add(visitor(2, 5))
    assert [g.arrival for g in desk.admit()] == [1]


def test_the_policy_is_asked_only_when_something_changed():
    desk, policy = make(pages=4)
    first = visitor(0, 1, 2, 3)
    desk.add(first)
    desk.add(visitor(1, 7, 8))
    desk.admit()
    assert policy.calls == 1
    desk.admit()
    assert policy.calls == 1
    compute(desk, first)
    desk.leave(first, "finished")
    assert [g.arrival for g in desk.admit()] == [1]
    assert policy.calls == 2


def test_a_full_house_is_asked_again_when_a_seat_is_free():
    desk, policy = make(seats=1)
    first = visitor(0, 1)
    desk.add(first)
    desk.add(visitor(1, 2))
    desk.admit()
    assert policy.offers == [(0, 1), (1, None)]
    desk.admit()
    assert policy.calls == 1
    desk.leave(first, "finished")
    assert [g.arrival for g in desk.admit()] == [1]


def test_whoever_was_admitted_last_is_put_back_and_returns_first():
    desk, policy = make(pages=6, policy=Scripted(order=[1, 0, 2]))
    old, young = visitor(0, 1, 2), visitor(1, 3, 4)
    desk.add(old)
    desk.add(young)
    assert desk.admit() == [young, old]
    for guest in (old, young):
        compute(desk, guest)
    for token in (10, 11):  # both of the pages that are left
        young.tokens.append(token)
        assert desk.grow(young, [token]) == []
    young.tokens.append(12)
    assert desk.grow(young, [12]) == [old]  # the later one in the order of admission
    assert old.lease is None
    assert list(desk.waiting) == [0]
    assert ("left", 0, "preempted", 0) in policy.told
    assert desk.admit() == []  # no memory yet
    desk.leave(young, "finished")
    desk.add(visitor(2, 1))
    assert [g.arrival for g in desk.admit()] == [0, 2]


def test_a_guest_alone_puts_itself_back_and_clears_the_cache():
    desk, _ = make(pages=4)
    guest = visitor(0, 1, 2, 3)
    other = visitor(1, 9)
    desk.add(other)
    desk.admit()
    compute(desk, other)
    desk.leave(other, "finished")
    desk.add(guest)
    desk.admit()
    compute(desk, guest)
    for token in (4, 5):
        guest.tokens.append(token)
        preempted = desk.grow(guest, [token])
    assert preempted == [guest]
    assert desk.tree.used_pages == 0


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_what_was_announced_and_not_computed_is_told(how):
    desk, policy = make()
    guest = visitor(0, 1, 2, 3, 4)
    desk.add(guest)
    desk.admit()
    desk.tree.commit(desk.tree.path(guest.lease)[0], 1)
    desk.leave(guest, how)
    assert policy.told[-1] == ("left", 0, how, 3)


def test_what_another_guest_was_to_compute_is_not_this_ones():
    desk, policy = make()
    first, second = visitor(0, 1, 2, 3, 4), visitor(1, 1, 2, 3, 5)
    desk.add(first)
    desk.add(second)
    desk.admit()
    desk.leave(second, "cancelled")
    assert policy.told[-1] == ("left", 1, "cancelled", 1)


def test_leaving_the_line_tells_the_policy_and_leaving_twice_is_let_pass():
    desk, policy = make(seats=1)
    first, second = visitor(0, 1), visitor(1, 2)
    desk.add(first)
    desk.add(second)
    desk.admit()
    desk.leave(second, "cancelled")
    assert policy.told[-1] == ("leave", 1)
    desk.leave(second, "cancelled")
    desk.leave(first, "finished")
    desk.leave(first, "finished")
    assert [t for t in policy.told if t[0] == "left"] == [("left", 0, "finished", 1)]
    assert not desk.running
    assert not desk.waiting


def test_a_hold_outlives_its_guest_and_can_be_released_twice():
    desk, policy = make(policy=Scripted(hold=2))
    guest = visitor(0, 1, 2, 3)
    desk.add(guest)
    desk.admit()
    compute(desk, guest)
    desk.leave(guest, "finished")
    desk.tree.clear()
    assert desk.tree.match(guest.namespace, [1, 2, 3]).length == 2
    policy.holds[0].release()
    policy.holds[0].release()
    desk.tree.clear()
    assert desk.tree.match(guest.namespace, [1, 2, 3]).length == 0
    desk.tree.check()


def test_holds_are_taken_back_when_nobody_could_run_otherwise():
    desk, policy = make(pages=4, policy=Scripted(hold=3))
    guest = visitor(0, 1, 2, 3)
    desk.add(guest)
    desk.admit()
    compute(desk, guest)
    desk.leave(guest, "finished")
    desk.add(visitor(1, 7, 8, 9))
    assert [g.arrival for g in desk.admit()] == [1]
    policy.holds[0].release()  # does nothing any more
    desk.tree.check()


def test_a_policy_that_offers_nobody_cannot_hang_the_desk():
    desk, policy = make(policy=Scripted(order=[]))
    desk.add(visitor(3, 1))
    desk.add(visitor(5, 2))
    assert [g.arrival for g in desk.admit()] == [3]
    assert ("leave", 3) in policy.told


class DeskMachine(RuleBasedStateMachine):
    """Random guests come, grow, leave and are cancelled; nobody is lost, memory adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(PrefixTree(13, 2), FirstComeFirstServed(), 3)
        self.guests: dict[int, Visitor] = {}
        self.gone: set[int] = set()

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=8))
    def come(self, tokens: list[int]) -> None:
        guest = visitor(len(self.guests), *tokens)
        self.guests[guest.arrival] = guest
        self.desk.add(guest)

    @rule()
    def admit(self) -> None:
        idle = not self.desk.running and self.desk.waiting
        admitted = self.desk.admit()
        assert not idle or admitted

    @precondition(lambda self: self.desk.running)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.desk.running))
        if len(guest.tokens) >= 20:
            return
        compute(self.desk, guest)
        guest.tokens.append(data.draw(st.integers(0, 2)))
        back = self.desk.grow(guest, guest.tokens[-1:])
        assert all(g.lease is None and g.arrival in self.desk.waiting for g in back)

    @precondition(lambda self: self.desk.running or self.desk.waiting)
    @rule(data=st.data(), how=st.sampled_from(["finished", "cancelled", "failed"]))
    def leave(self, data: st.DataObject, how) -> None:
        everybody = [*self.desk.running, *self.desk.waiting.values()]
        guest = data.draw(st.sampled_from(everybody))
        self.desk.leave(guest, how)
        self.gone.add(guest.arrival)

    @invariant()
    def nobody_is_lost(self) -> None:
        running = {g.arrival for g in self.desk.running}
        waiting = set(self.desk.waiting)
        assert not running & waiting
        assert running | waiting | self.gone == set(self.guests)
        assert len(self.desk.running) <= 3
        assert len(self.desk.policy) == len(waiting)

    @invariant()
    def leases_are_the_runners(self) -> None:
        self.desk.tree.check()
        assert self.desk.tree.stats().leases == len(self.desk.running)
        for guest in self.guests.values():
            assert (guest.lease is not None) == (guest in self.desk.running)
            if guest.lease is not None:
                assert guest.lease.tokens == guest.tokens


DeskMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDeskMachine = DeskMachine.TestCase
