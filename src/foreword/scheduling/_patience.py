"""Patience: who in line has been passed over so often that its turn has come."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.scheduling._lazy_heap import LazyHeap


@dataclass(slots=True)
class _Wait:
    """Somebody in line.

    Attributes:
        limit: the last admission that may pass it over while it is not overdue.
        overdue: it was found to be.
    """

    tenant: str
    limit: float
    overdue: bool = False


class Patience:
    """Counts admissions, and knows the earliest in line that may not be passed over any longer.

    A candidate that came as the `n`-th in line may be passed over by `(patience - 1) * n`
    admissions; from then on it is overdue, and whoever is overdue goes in order of arrival. Then
    only those that stood before it can go first, `n - 1` at most. So it is among the first
    `patience * n` admissions after it came, where first come, first served makes it the `n`-th.

    Tenants can be closed: their candidates wait, and count admissions, but are not named.

    Args:
        patience: 1 or more; 1 is first come, first served. Infinity needs no such book.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._admissions = 0
        self._waits: dict[int, _Wait] = {}  # all in line
        self._limits: LazyHeap[int] = LazyHeap(self._rank_limit)  # those not found overdue
        self._overdue: dict[str, LazyHeap[int]] = {}  # the others by tenant, never an empty heap
        self._tenants: LazyHeap[str] = LazyHeap(self._rank_tenant)
        self._closed: set[str] = set()

    def __len__(self) -> int:
        """Candidates in line."""
        return len(self._waits)

    def add(self, id: int, tenant: str) -> None:
        """Somebody came into line. Costs O(log line)."""
        place = len(self._waits) + 1
        limit = self._admissions + self._patience * place - place
        self._waits[id] = _Wait(tenant, limit)
        self._limits.push(id)

    def remove(self, id: int) -> None:
        """Somebody left the line, admitted or not. Costs O(log line), averaged over calls."""
        tenant = self._waits.pop(id).tenant
        if tenant in self._overdue and self._overdue[tenant].top() is None:
            del self._overdue[tenant]

    def admitted(self) -> None:
        """Somebody was admitted, and passed over all that are in line. O(1)."""
        self._admissions += 1

    def close(self, tenant: str) -> None:
        """Name nobody of a tenant from now on, whether it has somebody in line or not. O(1)."""
        self._closed.add(tenant)

    def open(self, tenant: str) -> None:
        """Name a tenant's candidates again. Tenants are open at first. O(log tenants)."""
        self._closed.discard(tenant)
        self._tenants.push(tenant)

    def first(self) -> int | None:
        """The id of the earliest who is overdue, of the open tenants; None if nobody is.

        Costs O(log line) for each who has become overdue since the last call.
        """
        while (id := self._limits.top()) is not None:
            wait = self._waits[id]
            if self._admissions + 1 <= wait.limit:
                break
            wait.overdue = True
            self._overdue.setdefault(wait.tenant, LazyHeap(self._rank_arrival)).push(id)
            self._tenants.push(wait.tenant)
        tenant = self._tenants.top()
        return None if tenant is None else self._overdue[tenant].top()

    def _rank_limit(self, id: int) -> tuple[float, int] | None:
        wait = self._waits.get(id)
        return None if wait is None or wait.overdue else (wait.limit, id)

    def _rank_arrival(self, id: int) -> tuple[int] | None:
        return (id,) if id in self._waits else None

    def _rank_tenant(self, tenant: str) -> tuple[int] | None:
        if tenant in self._closed or tenant not in self._overdue:
            return None
        first = self._overdue[tenant].top()
        return None if first is None else (first,)
