"""What every tenant has consumed at a replica, counted where it happens: at the engine's policy."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from foreword.scheduling import Candidate, Departure, Door, Policy

MAX_TENANTS = 1024


class MeteredPolicy:
    """A policy that passes everything on to another one and counts tokens per tenant.

    A prompt is counted in full when it comes into line, as D2LPM's router charges it; an answer
    token when it is written, so cancelled and failed answers are counted as far as they came.
    Counts only grow. Of more than `MAX_TENANTS` tenants the one silent for longest is forgotten.

    Args:
        inner: the policy that decides.

    Attributes:
        capacity: tokens that the engine's cache can hold; 0 until the first request.
    """

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.capacity = 0
        self._tenants: dict[int, str] = {}
        self._totals: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()  # the engine's thread counts, a server's loop reads

    @property
    def name(self) -> str:
        return self.inner.name

    def totals(self) -> dict[str, tuple[int, int]]:
        """Prompt and answer tokens by tenant since the start. A copy; any thread may ask."""
        with self._lock:
            return {tenant: (read, written) for tenant, (read, written) in self._totals.items()}

    def add(self, candidate: Candidate) -> None:
        if not candidate.preempted:
            self._count(candidate.tenant, candidate.tokens, 0)
        self._tenants[candidate.id] = candidate.tenant
        self.inner.add(candidate)

    def remove(self, id: int) -> None:
        self._tenants.pop(id, None)
        self.inner.remove(id)

    def admit(self, door: Door) -> None:
        self.capacity = door.capacity
        self.inner.admit(door)

    def produced(self, counts: Mapping[int, int]) -> None:
        for id, count in counts.items():
            self._count(self._tenants.get(id, ""), 0, count)
        self.inner.produced(counts)

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        if how != "preempted":  # it comes back in line under the same id
            self._tenants.pop(id, None)
        self.inner.left(id, how, uncomputed)

    def _count(self, tenant: str, read: int, written: int) -> None:
        with self._lock:
            total = self._totals.setdefault(tenant, [0, 0])
            total[0] += read
            total[1] += written
            self._totals.move_to_end(tenant)
            if len(self._totals) > MAX_TENANTS:
                self._totals.popitem(last=False)
