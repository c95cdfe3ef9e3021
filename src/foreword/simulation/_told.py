"""Policies that hear of written tokens when it matters, not step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foreword.scheduling import Candidate, Departure, Door, LinePolicy, Policy


class Told:
    """A policy that is told what was written right before it is told or asked anything else.

    So steps in which nothing else happens need not be reported one by one.

    Args:
        policy: who is told.
        report: tokens written since it was last called, by request id.
    """

    def __init__(self, policy: Policy, report: Callable[[], Mapping[int, int]]) -> None:
        self._policy = policy
        self._report = report
        self._cares = getattr(type(policy), "produced", None) is not LinePolicy.produced

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def looks_ahead(self) -> bool:
        return self._policy.looks_ahead

    def catch_up(self) -> None:
        if self._cares:
            counts = self._report()
            if counts:
                self._policy.produced(counts)

    def add(self, candidate: Candidate) -> None:
        self.catch_up()
        self._policy.add(candidate)

    def remove(self, id: int) -> None:
        self.catch_up()
        self._policy.remove(id)

    def admit(self, door: Door) -> None:
        self.catch_up()
        self._policy.admit(door)

    def produced(self, counts: Mapping[int, int]) -> None:
        self._policy.produced(counts)

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        self.catch_up()
        self._policy.left(id, how, uncomputed)
