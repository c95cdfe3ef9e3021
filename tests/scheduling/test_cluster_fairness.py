"""D²LPM over workers that run DLPM: Theorem 5.1 of arXiv 2501.14312, and where it ends (A.5)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foreword.scheduling import Candidate, DeficitLongestPrefixMatch, make_router
from tests.scheduling.doors import FakeDoor


@dataclass
class Ask:
    tenant: str
    path: list[int]
    output: int


@dataclass
class Cluster:
    """Workers of few seats, in step: each admits, then everybody running writes a token."""

    workers: int
    seats: int
    quantum: float  # of DLPM
    credit: float  # quantum of the router
    asks: dict[int, Ask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.doors = [FakeDoor(capacity=400, seats=self.seats) for _ in range(self.workers)]
        self.policies = [
            DeficitLongestPrefixMatch(quantum=self.quantum) for _ in range(self.workers)
        ]
        self.router = make_router("d2lpm", quantum=self.credit)
        self.router.set_workers(range(self.workers))
        self.waiting = [Counter[str]() for _ in range(self.workers)]
        self.service = [Counter[str]() for _ in range(self.workers)]
        self.written: Counter[int] = Counter()

    def send(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            id = len(self.asks)
            self.asks[id] = ask
            candidate = Candidate(id, ask.path, len(ask.path), ask.output, ask.tenant)
            worker = self.router.route(candidate)
            assert isinstance(worker, int)
            self.router.dispatched(worker, candidate)
            self.policies[worker].add(candidate)
            self.waiting[worker][ask.tenant] += 1

    def step(self) -> None:
        for worker, (door, policy) in enumerate(zip(self.doors, self.policies, strict=True)):
            before = len(door.offers)
            policy.admit(door)
            for id, extend in door.offers[before:]:
                if extend is not None:
                    tenant = self.asks[id].tenant
                    self.service[worker][tenant] += extend
                    self.waiting[worker][tenant] -= 1
            policy.produced(dict.fromkeys(door.runners, 1))
            for id in list(door.runners):
                assert door.write(id, 1)
                self.service[worker][self.asks[id].tenant] += 2
                self.written[id] += 1
                if self.written[id] == self.asks[id].output:
                    door.leave(id)
                    policy.left(id, "finished")
                    self.router.finished(worker, id, self.asks[id].output)

    def gaps(self, one: str, other: str) -> list[int]:
        """How far ahead the second is, at each worker."""
        return [service[other] - service[one] for service in self.service]

    def backlogged(self, tenant: str, where: type[all] | type[any] = all) -> bool:
        return where(waiting[tenant] for waiting in self.waiting)

    def bound(self) -> float:
        """2 (U + Q), with the most that a full worker can write for the output in U."""
        longest = max(len(ask.path) for ask in self.asks.values())
        most = self.seats * max(ask.output for ask in self.asks.values())
        return 2 * (longest + 2 * most + self.quantum)


PROMPT = st.tuples(st.integers(0, 9), st.integers(1, 25), st.integers(1, 6))


@st.composite
def clients(draw: st.DrawFn) -> list[Ask]:
    """Two clients with many requests each: few heads or many, long ones or short."""
    asks: list[Ask] = []
    for tenant in "fg":
        heads = draw(st.integers(1, 10))
        for number, (head, length, output) in enumerate(draw(st.lists(PROMPT, min_size=60))):
            name = 1000 * (head % heads) + (0 if tenant == "f" else 500)
            own = 100_000 + 10_000 * (tenant == "g") + number
            asks.append(Ask(tenant, [name + k for k in range(length)] + [own], output))
    order = draw(st.randoms(use_true_random=False))
    order.shuffle(asks)
    return asks


@given(
    asks=clients(),
    workers=st.integers(2, 3),
    seats=st.integers(1, 4),
    quantum=st.integers(1, 60),
    credit=st.integers(1, 120),
)
@settings(deadline=None, max_examples=25)
def test_two_clients_that_wait_everywhere_are_served_alike(
    asks: list[Ask], workers: int, seats: int, quantum: int, credit: int
) -> None:
    cluster = Cluster(workers, seats, quantum, credit)
    cluster.send(asks)
    bound = cluster.bound()
    assume(cluster.backlogged("f") and cluster.backlogged("g"))
    while cluster.backlogged("f") and cluster.backlogged("g"):
        cluster.step()
        gaps = cluster.gaps("f", "g")
        assert all(abs(gap) <= bound for gap in gaps)  # Theorem 4.1 on each worker
        assert abs(sum(gaps)) <= workers * bound  # Theorem 5.1


def sticky_against_spread(credit: float, quantum: float = 20) -> tuple[float, float]:
    """The construction of Theorem A.5: f has one long prefix, g shares nothing.

    Returns:
        The largest difference while both had requests in line, and the bound for a quantum of 20.
    """
    cluster = Cluster(workers=4, seats=2, quantum=quantum, credit=credit)
    for number in range(400):
        cluster.send(
            [
                Ask("f", [*range(30), 10_000 + number], 4),
                Ask("g", [20_000 + 50 * number + k for k in range(31)], 4),
            ]
        )
    apart = 0.0
    while cluster.backlogged("f", any) and cluster.backlogged("g", any):
        cluster.step()
        apart = max(apart, abs(sum(cluster.gaps("f", "g"))))
    cluster.quantum = 20
    return apart, 4 * cluster.bound()


def test_with_infinite_credit_the_difference_grows_beyond_any_bound() -> None:
    apart, bound = sticky_against_spread(credit=math.inf)
    assert apart > 3 * bound


def test_with_finite_credit_the_same_clients_stay_within_it() -> None:
    apart, bound = sticky_against_spread(credit=100)
    assert apart <= bound


def test_without_credit_on_the_workers_finite_credit_at_the_router_is_not_enough() -> None:
    apart, bound = sticky_against_spread(credit=100, quantum=math.inf)
    assert apart > bound
