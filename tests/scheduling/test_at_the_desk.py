"""The online policies at a real desk, over a real prefix tree that is too small for all."""

from __future__ import annotations

import random

import pytest

from foreword.admission import Desk
from foreword.cache import PrefixTree
from foreword.scheduling import (
    DeficitLongestPrefixMatch,
    LongestPrefixMatch,
    Policy,
    dlpm_bound,
    make_policy,
    vtc_bound,
)
from tests.admission.guests import Visitor, visitor
from tests.scheduling.play import OUTPUT_WEIGHT, Books

SEATS, PAGE, PAGES = 6, 1, 37  # room for 36 tokens, and six guests may have 120


class Evening:
    """A desk, the guests that come to it, and the books; full prompts are charged if so told."""

    def __init__(self, policy: Policy, *, full_prompts: bool = False) -> None:
        self.policy = policy
        self.tree = PrefixTree(PAGES, PAGE)
        self.desk: Desk[Visitor] = Desk(self.tree, policy, SEATS)
        self.books = Books()
        self.preempted = self.computed = self.done = 0
        self._full_prompts = full_prompts
        self._new: set[int] = set()

    def arrive(self, guest: Visitor) -> None:
        self.books.serve(guest.tenant, 0)
        self._new.add(guest.arrival)
        self.desk.add(guest)
        self._look()

    def step(self) -> None:
        for guest in self.desk.admit():
            if guest.arrival in self._new:
                self._new.remove(guest.arrival)
                announced = self.desk.announced(guest)
                self.books.serve(guest.tenant, guest.length if self._full_prompts else announced)
        self._look()
        assert self.desk.running or not self.desk.waiting
        for node in self.tree.nodes():
            self.computed += len(node.tokens) - node.computed
            self.tree.commit(node, len(node.tokens))
        runners = list(self.desk.running)
        self.desk.produced({guest.arrival: 1 for guest in runners})
        for guest in runners:
            guest.tokens.append(1_000_000 + guest.arrival)  # nobody else says this
            self.books.serve(guest.tenant, OUTPUT_WEIGHT)
            if not guest.room:
                self.desk.leave(guest, "finished")
                self.done += 1
        self._look()
        for guest in runners:
            if guest.lease is not None:
                self.preempted += len(self.desk.grow(guest, guest.tokens[-1:]))
        self._look()
        self.tree.check()

    def _look(self) -> None:
        waiting = self.desk.waiting.values()
        self.books.look({guest.tenant for guest in waiting if not guest.started})
        if isinstance(self.policy, DeficitLongestPrefixMatch):
            most = 12 + OUTPUT_WEIGHT * SEATS * 8
            for deficit in self.policy.deficits.values():
                assert -most < deficit <= self.policy.quantum


def spend(evening: Evening, seed: int) -> Evening:
    """Three tenants: one floods behind a shared prefix, one has a prefix, one has none."""
    chance = random.Random(seed)
    arrivals = []
    for tenant, prefix, requests in (("a", 10, 60), ("b", 6, 20), ("c", 0, 20)):
        arrivals += [(chance.uniform(0, 40), tenant, prefix) for _ in range(requests)]
    arrivals.sort()
    step = id = 0
    while evening.done < len(arrivals):
        while id < len(arrivals) and arrivals[id][0] <= step:
            _, tenant, prefix = arrivals[id]
            own = [100 * id + place for place in range(chance.randint(1, 12 - prefix))]
            shared = [ord(tenant)] * prefix
            evening.arrive(
                visitor(id, *shared, *own, tenant=tenant, max_output=chance.randint(1, 8))
            )
            id += 1
        evening.step()
        step += 1
    return evening


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "name",
    [
        "fcfs",
        "lpm",
        "lpm:window=5",
        "dfs",
        "vtc",
        "dlpm:quantum=20",
        "dlpm:quantum=20,patience=1.5",
    ],
)
def test_everybody_is_served_whoever_is_preempted(name: str, seed: int) -> None:
    evening = spend(Evening(make_policy(name)), seed)
    assert evening.preempted > 0
    assert not evening.desk.waiting
    assert not evening.desk.running
    assert len(evening.policy) == 0  # type: ignore[arg-type]
    assert evening.tree.stats().leases == 0


@pytest.mark.parametrize("seed", range(5))
def test_service_stays_within_the_bounds(seed: int) -> None:
    bound = dlpm_bound(10, longest_input=12, most_running_tokens=SEATS * 8)
    for name in ("dlpm:quantum=10", "dlpm:quantum=10,patience=1.5"):
        assert spend(Evening(make_policy(name)), seed).books.gap <= bound
    vtc = Evening(make_policy("vtc"), full_prompts=True)
    assert spend(vtc, seed).books.gap <= vtc_bound(12, SEATS * (12 + 8))


def test_longest_prefix_match_computes_least_and_is_not_fair() -> None:
    gaps, computed = [], []
    for name in ("lpm", "dlpm:quantum=100", "dlpm:quantum=5", "vtc"):
        evenings = [spend(Evening(make_policy(name)), seed) for seed in range(3)]
        gaps.append(sum(evening.books.gap for evening in evenings))
        computed.append(sum(evening.computed for evening in evenings))
    assert gaps[0] > gaps[1] > gaps[2]
    assert computed[0] < computed[3]


def test_a_prompt_that_somebody_is_about_to_compute_counts_as_cached() -> None:
    desk: Desk[Visitor] = Desk(PrefixTree(PAGES, PAGE), LongestPrefixMatch(), seats=9)
    for guest in (visitor(0, 1, 2, 3), visitor(1, 8, 8), visitor(2, 1, 2, 9)):
        desk.add(guest)
    assert [guest.arrival for guest in desk.admit()] == [0, 2, 1]
