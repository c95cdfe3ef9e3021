"""How a router hears of what it cannot see: answers, other routers' requests, true prompt lengths.

Ray tells a router that a request has ended, not what came of it, and every handle and proxy has a
router of its own. So replicas report, with Ray's routing statistics, what every tenant has consumed
there since the start. Totals need no acknowledgement: a report that is lost is made up for by the
next.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import count
from typing import Any

from foreword.scheduling import Candidate, Router, RouterIndex
from foreword.serving.ray._meter import MAX_TENANTS, MeteredPolicy

_KEY = "foreword"


def make_report(meter: MeteredPolicy) -> dict[str, Any]:
    """What a replica says of itself: `{"foreword": {"capacity": ..., "tokens": {tenant: ...}}}`."""
    tokens = {tenant: list(total) for tenant, total in meter.totals().items()}
    return {_KEY: {"capacity": meter.capacity, "tokens": tokens}}


class Accounts:
    """Charges a router for what replicas report, and never twice.

    Prompt tokens that this router has charged already, at dispatch and by its own estimate, count
    against the report: it charges only what the report has beyond them. So an estimate that was too
    low and the requests of other routers are made good; one that was too high stays.

    Args:
        router: whom to charge.
        unit: tokens that one element of its index stands for.
    """

    def __init__(self, router: Router, unit: int) -> None:
        self._router = router
        self._unit = unit
        self._charged: dict[Hashable, dict[str, list[int]]] = {}  # worker: tenant: read, written
        self._ids = count(-1, -1)  # the router's own requests count up from 0

    def dispatched(self, worker: Hashable, candidate: Candidate) -> None:
        """The router was told that this candidate was sent, and has charged its prompt."""
        if worker in self._charged:
            self._charged[worker].setdefault(candidate.tenant, [0, 0])[0] += candidate.tokens

    def set_workers(self, workers: Mapping[Hashable, Mapping[str, Any]]) -> None:
        """These are the workers now, with the last report of each; {} where there is none yet.

        What a worker had reported before this router first saw it is not charged.
        """
        for worker in self._charged.keys() - workers.keys():
            del self._charged[worker]
        for worker, report in workers.items():
            said = report.get(_KEY, {})
            totals = said.get("tokens", {})
            if worker not in self._charged:
                self._charged[worker] = {tenant: list(total) for tenant, total in totals.items()}
                continue
            for tenant, (read, written) in totals.items():
                self._charge(worker, tenant, read, written)
            self._forget(worker, totals)
        self._bound_index(workers.values())

    def _charge(self, worker: Hashable, tenant: str, read: int, written: int) -> None:
        known = self._charged[worker].setdefault(tenant, [0, 0])
        more_read, more_written = max(0, read - known[0]), max(0, written - known[1])
        if more_read or more_written:
            known[0] += more_read
            known[1] += more_written
            # A request without a prefix that ends at once: it changes nothing but the credit.
            bill = Candidate(
                id=next(self._ids), path=(), tokens=more_read, max_output=0, tenant=tenant
            )
            self._router.dispatched(worker, bill)
            self._router.finished(worker, bill.id, more_written)

    def _forget(self, worker: Hashable, totals: Mapping[str, Any]) -> None:
        """Keep the books as short as the replicas keep theirs."""
        charged = self._charged[worker]
        if len(charged) > 2 * MAX_TENANTS:
            self._charged[worker] = {t: total for t, total in charged.items() if t in totals}

    def _bound_index(self, reports: Any) -> None:
        """Let the index hold no more of a worker than the smallest cache among them holds."""
        index = getattr(self._router, "index", None)
        capacities = [report[_KEY]["capacity"] for report in reports if _KEY in report]
        least = min(filter(None, capacities), default=0) // self._unit
        if isinstance(index, RouterIndex) and 0 < least < index.capacity:
            index.capacity = least
