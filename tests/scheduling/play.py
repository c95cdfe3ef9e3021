"""Requests played through a policy at a fake door, with the service of each tenant watched."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import combinations, permutations

from foreword.scheduling import Candidate, Policy
from tests.scheduling.doors import FakeDoor

OUTPUT_WEIGHT = 2


class Books:
    """Who was served how much, and how far that drifted apart.

    Attributes:
        service: by tenant.
        gap: the most that the services of two tenants drifted apart while both were in line.
        lags: by two tenants, the most that the first, in line, fell behind the other, in line or
            not.
    """

    def __init__(self) -> None:
        self.service: dict[str, float] = {}
        self.gap = 0.0
        self.lags: dict[tuple[str, str], float] = {}
        self._drifts: dict[tuple[str, str], tuple[float, float]] = {}
        self._behind: dict[tuple[str, str], float] = {}

    def serve(self, tenant: str, service: float) -> None:
        self.service[tenant] = self.service.get(tenant, 0) + service

    def look(self, queued: Collection[str]) -> None:
        """Extend the spans in which tenants are in line, and measure what happened in them."""
        drifts: dict[tuple[str, str], tuple[float, float]] = {}
        for f, g in combinations(sorted(queued), 2):
            drift = self.service[f] - self.service[g]
            low, high = self._drifts.get((f, g), (drift, drift))
            drifts[f, g] = min(low, drift), max(high, drift)
            self.gap = max(self.gap, drifts[f, g][1] - drifts[f, g][0])
        self._drifts = drifts
        behind: dict[tuple[str, str], float] = {}
        for f, g in permutations(sorted(self.service), 2):
            if f in queued:
                lead = self.service[g] - self.service[f]
                behind[f, g] = min(self._behind.get((f, g), lead), lead)
                self.lags[f, g] = max(self.lags.get((f, g), 0), lead - behind[f, g])
        self._behind = behind


class Play(FakeDoor):
    """A door whose runners write one token per step, and the books of who was served how much.

    Service is what is charged at the first admission, and `OUTPUT_WEIGHT` per token written. It is
    looked at after every single admission and every step.

    Args:
        policy: who is admitted.
        price: service of an admission, from the candidate and its tokens to compute.
        seats, capacity: as of the door.

    Attributes:
        books: kept up to date with every charge.
        watch: called after every charge.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        price: Callable[[Candidate, int], float] = lambda candidate, missing: missing,
        seats: int = 4,
        capacity: int = 10_000,
        unit: int = 1,
    ) -> None:
        super().__init__(unit=unit, capacity=capacity, seats=seats)
        self.policy = policy
        self.price = price
        self.books = Books()
        self.waiting: dict[int, Candidate] = {}
        self.watch: Callable[[], None] = lambda: None
        self._remaining: dict[int, int] = {}
        self._paid: dict[int, int] = {}

    def arrive(self, candidate: Candidate, output: int) -> None:
        self.books.serve(candidate.tenant, 0)
        self._remaining[candidate.id] = output
        self._line_up(candidate)

    def admit(self) -> None:
        self.policy.admit(self)
        assert self.running or not self.waiting, "nobody runs, and nobody got in"

    def step(self) -> None:
        """Admit, let every runner write a token, and see those off that are done."""
        self.admit()
        self.policy.produced(dict.fromkeys(self.runners, 1))
        for id, runner in self.runners.items():
            self.books.serve(runner.tenant, OUTPUT_WEIGHT)
            self._remaining[id] -= 1
        self._look()
        for id in [id for id in self.runners if not self._remaining[id]]:
            self.leave(id)
            self.policy.left(id, "finished")

    def preempt(self) -> None:
        """Put the runner that was admitted last back in line."""
        id = list(self.runners)[-1]
        runner = self.leave(id)
        self.policy.left(id, "preempted")
        self._line_up(replace(runner, preempted=True))

    def cancel(self, id: int) -> None:
        """Take a runner away of whose prompt nothing has been computed yet."""
        runner = self.leave(id)
        missing = self._paid[id]
        self.books.serve(runner.tenant, -self.price(runner, missing))
        self.policy.left(id, "cancelled", missing)
        self._look()

    def offer(self, candidate: Candidate, *, spare: int = 0) -> int | None:
        missing = super().offer(candidate, spare=spare)
        if missing is not None:
            del self.waiting[candidate.id]
            if not candidate.preempted:
                self._paid[candidate.id] = missing
                self.books.serve(candidate.tenant, self.price(candidate, missing))
            self._look()
        return missing

    def _line_up(self, candidate: Candidate) -> None:
        self.waiting[candidate.id] = candidate
        self.policy.add(candidate)
        self._look()

    def _look(self) -> None:
        self.books.look({c.tenant for c in self.waiting.values() if not c.preempted})
        self.watch()
