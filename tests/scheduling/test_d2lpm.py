"""Algorithm 2 of arXiv 2501.14312, by hand and against the loops as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from foreword.scheduling import Candidate, DistributedDeficitLongestPrefixMatch


def candidate(id: int, path: Sequence[int], tenant: str = "i", tokens: int = 0) -> Candidate:
    return Candidate(id=id, path=path, tokens=tokens or len(path), max_output=9, tenant=tenant)


def d2lpm(workers: Any = "xyz", **more: Any) -> DistributedDeficitLongestPrefixMatch:
    router = DistributedDeficitLongestPrefixMatch(**more)
    router.set_workers(workers)
    return router


def with_queues(**more: Any) -> DistributedDeficitLongestPrefixMatch:
    """x and y hold [1, 2] and have 5 and 1 requests of somebody else; z is empty."""
    router = d2lpm(**more)
    for worker, queue in (("x", 5), ("y", 1)):
        for k in range(queue):
            router.dispatched(worker, candidate(ord(worker) * 10 + k, [1, 2], tenant="other"))
    return router


class TestByHand:
    def test_the_shortest_queue_of_the_longest_match(self) -> None:
        assert with_queues().route(candidate(1, [1, 2, 3])) == "y"

    def test_who_has_no_credit_there_goes_elsewhere(self) -> None:
        router = with_queues(quantum=10)
        assert router.route(candidate(0, [1, 2])) == "y"
        router.dispatched("y", candidate(0, [1, 2], tokens=10))
        assert router.credit("i") == {"x": 10, "y": 0, "z": 10}
        assert router.route(candidate(1, [1, 2])) == "x"  # it holds as much, and has credit
        router.dispatched("x", candidate(1, [1, 2], tokens=11))
        assert router.credit("i") == {"x": -1, "y": 0, "z": 10}
        assert router.route(candidate(2, [1, 2])) == "z"

    def test_without_credit_at_the_longest_match_a_shorter_match_counts_for_nothing(self) -> None:
        router = with_queues(quantum=10)
        router.dispatched("y", candidate(0, [1, 2, 3], tokens=10))
        assert router.route(candidate(1, [1, 2, 3])) == "z"  # not x, which holds two of three

    def test_dispatch_charges_the_full_prompt_and_finish_the_output(self) -> None:
        router = d2lpm(quantum=100, extend_weight=3, output_weight=2)
        first = candidate(0, [1, 2], tokens=10)
        assert router.route(first) == "x"
        router.dispatched("x", first)
        assert router.credit("i") == {"x": 70, "y": 100, "z": 100}
        router.dispatched("x", first)  # told twice
        router.finished("x", 0, 20)
        assert router.credit("i") == {"x": 30, "y": 100, "z": 100}
        router.finished("x", 0, 20)  # told twice
        assert router.credit("i")["x"] == 30
        router.dispatched("x", first)  # cached by now, and charged in full all the same
        assert router.credit("i")["x"] == 0
        assert router.credit("nobody") == {"x": 0, "y": 0, "z": 0}

    def test_a_refill_lifts_every_worker_until_one_has_credit(self) -> None:
        router = d2lpm(quantum=10)
        for worker, debt in (("x", 25), ("y", 47), ("z", 20)):
            router.dispatched(worker, candidate(debt, [1], tokens=debt))
        router.route(candidate(0, [1]))  # three rounds: z is at exactly 0 after two
        assert router.credit("i") == {"x": 5, "y": -17, "z": 10}

    def test_clients_have_credits_of_their_own(self) -> None:
        router = d2lpm(quantum=10)
        router.dispatched("x", candidate(0, [1], tenant="deep", tokens=1000))
        router.route(candidate(1, [1], tenant="new"))
        assert router.credit("new") == {"x": 10, "y": 10, "z": 10}
        assert router.credit("deep") == {"x": -1000, "y": 0, "z": 0}

    def test_only_the_feasible_count_and_nobody_hoards(self) -> None:
        router = d2lpm(quantum=10)
        assert router.route(candidate(0, [1]), ["x"]) == "x"
        for id in range(5):
            router.dispatched("x", candidate(id, [1], tokens=30))
            assert router.route(candidate(9, [1]), ["x"]) == "x"
        assert router.credit("i")["y"] == 10  # it was there for all rounds, and has one quantum

    def test_a_new_worker_starts_without_credit(self) -> None:
        router = d2lpm("x", quantum=10)
        router.route(candidate(0, [1]))
        router.set_workers("xw")
        assert router.credit("i") == {"x": 10, "w": 0}
        assert router.route(candidate(0, [1])) == "x"
        router.dispatched("x", candidate(0, [1], tokens=10))
        router.set_workers("w")
        router.set_workers("xw")
        assert router.credit("i") == {"x": 0, "w": 0}  # neither debt nor credit comes back

    def test_load_slack_keeps_requests_away_from_long_queues(self) -> None:
        request = candidate(0, [1, 2, 3])
        assert with_queues(load_slack=1).route(request) == "y"
        assert with_queues(load_slack=0).route(request) == "z"

    def test_an_infinite_quantum_is_locality_alone(self) -> None:
        router = d2lpm(quantum=float("inf"))
        for id in range(50):
            worker = router.route(candidate(id, [1, 2], tokens=10_000))
            router.dispatched(worker, candidate(id, [1, 2], tokens=10_000))
            assert worker == "x"

    def test_clients_beyond_the_limit_are_forgotten_oldest_first(self) -> None:
        router = d2lpm(quantum=10, clients=2)
        for id, tenant in enumerate("aba"):
            router.dispatched("x", candidate(id, [1], tenant=tenant, tokens=5))
        router.dispatched("x", candidate(3, [1], tenant="c", tokens=5))
        assert [router.credit(tenant)["x"] for tenant in "abc"] == [-10, 0, -5]
        router.finished("x", 1, 1)  # b is heard of again: at 0, so it owes the output only
        assert router.credit("b")["x"] == -2


@given(
    quantum=st.floats(min_value=5e-324, max_value=1e300) | st.integers(1, 10**6),
    debt=st.integers(0, 10**12),
)
def test_refills_end_however_small_the_quantum_and_large_the_debt(
    quantum: float, debt: int
) -> None:
    router = d2lpm("xy", quantum=quantum)
    router.dispatched("x", candidate(0, [1], tokens=debt + 5))
    router.dispatched("y", candidate(1, [1], tokens=debt + 1))
    chosen = router.route(candidate(2, [1]))
    credit = router.credit("i")
    assert 0 < credit[chosen] <= quantum
    assert credit["x"] <= credit["y"] <= quantum


class AsPrinted(RuleBasedStateMachine):
    """Every verb in any order, against loops that follow the paper line by line."""

    tenants = st.sampled_from(["i", "j"])
    workers = st.sampled_from(["x", "y", "z"])
    paths = st.lists(st.integers(0, 2), min_size=1, max_size=4)

    @initialize(quantum=st.integers(1, 12), slack=st.none() | st.integers(0, 2))
    def build(self, quantum: int, slack: int | None) -> None:
        self.quantum, self.slack = quantum, slack
        self.router = d2lpm("", quantum=quantum, load_slack=slack)
        self.alive: list[str] = []
        self.q: dict[tuple[str, str], int] = {}
        self.sent: dict[str, dict[int, str]] = {}
        self.holds: dict[str, set[tuple[int, ...]]] = {}
        self.id = 0

    @rule(workers=st.lists(workers, unique=True))
    def set_workers(self, workers: list[str]) -> None:
        self.router.set_workers(workers)
        for worker in set(self.alive) ^ set(workers):  # the dead leave nothing, the new have none
            self.q = {(i, w): q for (i, w), q in self.q.items() if w != worker}
            self.sent[worker], self.holds[worker] = {}, set()
        self.alive = workers

    @rule(tenant=tenants, path=paths, tokens=st.integers(1, 40), among=st.sets(workers))
    def route_and_dispatch(
        self, tenant: str, path: list[int], tokens: int, among: set[str]
    ) -> None:
        feasible = among & set(self.alive)
        if not feasible:
            return
        self.id += 1
        request = candidate(self.id, path, tenant, tokens)
        while all(self.q.get((tenant, w), 0) <= 0 for w in feasible):
            for w in self.alive:
                self.q[tenant, w] = min(self.q.get((tenant, w), 0) + self.quantum, self.quantum)
        solvent = {w for w in feasible if self.q.get((tenant, w), 0) > 0}
        match = {w: self.held(w, path) for w in feasible}
        longest = {w for w in feasible if match[w] == max(match.values())}
        if self.slack is not None:
            shortest = min(len(self.sent[w]) for w in feasible)
            longest = {w for w in longest if len(self.sent[w]) <= shortest + self.slack}
        among = (longest & solvent) or solvent
        best = {w for w in among if len(self.sent[w]) == min(len(self.sent[v]) for v in among)}
        chosen = self.router.route(request, feasible)
        assert chosen in best
        self.dispatch(chosen, request)

    @rule(worker=workers, tenant=tenants, path=paths)
    def dispatch_unasked(self, worker: str, tenant: str, path: list[int]) -> None:
        self.id += 1
        self.dispatch(worker, candidate(self.id, path, tenant))

    def dispatch(self, worker: str, request: Candidate) -> None:
        self.router.dispatched(worker, request)
        if worker in self.alive:
            key = (request.tenant, worker)
            self.q[key] = self.q.get(key, 0) - request.tokens
            self.sent[worker][request.id] = request.tenant
            self.holds[worker] |= {tuple(request.path[: n + 1]) for n in range(len(request.path))}

    @rule(worker=workers, back=st.integers(0, 5), output=st.integers(0, 30))
    def finish(self, worker: str, back: int, output: int) -> None:
        self.router.finished(worker, self.id - back, output)
        tenant = self.sent.get(worker, {}).pop(self.id - back, None)
        if tenant is not None:
            self.q[tenant, worker] = self.q.get((tenant, worker), 0) - 2 * output

    @rule(worker=workers, path=paths)
    def evict(self, worker: str, path: list[int]) -> None:
        self.router.evicted(worker, "", path)
        gone = tuple(path)
        held = self.holds.get(worker, set())
        self.holds[worker] = {p for p in held if p[: len(gone)] != gone}

    def held(self, worker: str, path: list[int]) -> int:
        return max((len(p) for p in self.holds[worker] if p == tuple(path[: len(p)])), default=0)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "router"):
            return
        self.router.index.check()
        assert set(self.router.workers) == set(self.alive)
        for worker in self.alive:
            assert self.router.queue(worker) == len(self.sent[worker])
        for tenant in ("i", "j"):
            credit = {worker: self.q.get((tenant, worker), 0) for worker in self.alive}
            assert self.router.credit(tenant) == credit
            assert all(q <= self.quantum for q in credit.values())


TestAsPrinted = AsPrinted.TestCase
TestAsPrinted.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


class Spread:
    """What one client was charged at each worker: even up to a quantum and a prompt."""

    @staticmethod
    def gap(quantum: float, requests: list[tuple[int, int]], workers: int) -> tuple[float, int]:
        router = d2lpm(range(workers), quantum=quantum)
        charged = [0] * workers
        worst = 0
        for id, (head, tokens) in enumerate(requests):
            request = candidate(id, [head, id + 100], tokens=tokens)
            worker = router.route(request)
            router.dispatched(worker, request)
            charged[worker] += tokens
            worst = max(worst, max(charged) - min(charged))
        return worst, max(tokens for _, tokens in requests)


@given(
    quantum=st.integers(1, 200),
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=80),
    workers=st.integers(2, 5),
)
@settings(deadline=None)
def test_a_client_is_spread_over_the_workers_up_to_a_quantum_and_a_prompt(
    quantum: int, requests: list[tuple[int, int]], workers: int
) -> None:
    worst, longest = Spread.gap(quantum, requests, workers)
    assert worst < quantum + longest


@pytest.mark.parametrize("quantum", [50.0, float("inf")])
def test_an_infinite_quantum_spreads_nothing(quantum: float) -> None:
    worst, longest = Spread.gap(quantum, [(0, 90)] * 100, 4)
    assert (worst < 50 + longest) == (quantum == 50)
