"""Workers in turn."""

from __future__ import annotations

from collections.abc import Hashable

from foreword.scheduling._policy import Candidate
from foreword.scheduling._router import QueueRouter
from foreword.scheduling._settings import truth


class RoundRobin(QueueRouter):
    """Each request to the worker whose turn is longest ago, whatever it holds or has to do.

    Args:
        per_tenant: every tenant has a round of its own. With a fair policy on the workers the
            whole is fair then, up to a factor of the number of workers (arXiv 2501.14312,
            Theorem A.6). Costs memory for every tenant ever seen.
    """

    name = "round-robin"

    def __init__(self, *, per_tenant: bool = False) -> None:
        super().__init__()
        self._per_tenant = truth("per_tenant", per_tenant)
        self._last: dict[str, dict[Hashable, int]] = {}  # when a worker last had its turn

    def _choose(self, candidate: Candidate, among: list[Hashable]) -> Hashable:
        last = self._last.get(self._whose(candidate), {})
        return min(among, key=lambda worker: last.get(worker, 0))

    def _took(self, worker: Hashable, candidate: Candidate) -> None:
        self._last.setdefault(self._whose(candidate), {})[worker] = self._clock

    def _lost(self, worker: Hashable) -> None:
        for last in self._last.values():
            last.pop(worker, None)

    def _whose(self, candidate: Candidate) -> str:
        return candidate.tenant if self._per_tenant else ""
