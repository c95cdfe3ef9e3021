"""What fair policies have in common: who is charged how much for what, and when it is given back.

| what happens                  | what its tenant pays                                             |
|-------------------------------|------------------------------------------------------------------|
| first admission               | the prompt tokens that the policy counts                         |
| a token is written            | its price, each time                                             |
| preempted, admitted again     | nothing: computing twice is nobody's wish                        |
| cancelled or failed running   | gets back the prompt tokens that were charged and never computed |
| cancelled in line             | nothing if it never ran, else as when it was running             |
| finished                      | nothing more                                                     |
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from foreword._errors import ParameterError
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Departure
from foreword.scheduling._settings import number, whole


@dataclass(slots=True)
class _Bill:
    """Who pays for a request in line or running.

    Attributes:
        unused: prompt tokens paid for that are not known to have been computed.
    """

    tenant: str
    unused: int = 0


class FairPolicy(LinePolicy):
    """Keeps the tenants' bills; a policy says what it does with the charges.

    Args:
        prefill_weight: price of a prompt token that the policy counts.
        output_weight: price of a token written.
        weights: shares of tenants; 1 where nothing is said. Charges are divided by it, so a tenant
            of weight 2 gets twice the service.
        clients: how many absent tenants are remembered. Beyond them, the one that has been away for
            longest is forgotten and comes back as a new one.
    """

    def __init__(
        self,
        *,
        prefill_weight: float,
        output_weight: float,
        weights: Mapping[str, float] | None,
        clients: int,
    ) -> None:
        super().__init__()
        self._prefill_weight = prefill_weight
        self._output_weight = output_weight
        self._weights = _check_weights(weights)
        self._remembered = whole("clients", clients)
        self._bills: dict[int, _Bill] = {}
        self._present: dict[str, int] = {}  # requests in line or running, by tenant
        self._absent: dict[str, None] = {}  # longest away first

    def add(self, candidate: Candidate) -> None:
        tenant = candidate.tenant
        if candidate.id not in self._bills:  # not one that was preempted
            self._absent.pop(tenant, None)
            self._present[tenant] = self._present.get(tenant, 0) + 1
            self._bills[candidate.id] = _Bill(tenant)
            self._meet(tenant)
        super().add(candidate)

    def remove(self, id: int) -> None:
        super().remove(id)
        self._settle(id, refund=True)

    def produced(self, counts: Mapping[int, int]) -> None:
        for id, tokens in counts.items():
            if id in self._bills:
                tenant = self._bills[id].tenant
                self._charge(tenant, tokens * self._output_weight / self._weight(tenant))

    def left(self, id: int, how: Departure, uncomputed: int = 0) -> None:
        if id not in self._bills:
            return
        bill = self._bills[id]
        bill.unused = min(bill.unused, uncomputed)
        if how != "preempted":
            self._settle(id, refund=how != "finished")

    def _bill(self, candidate: Candidate, tokens: int) -> None:
        """Charge a candidate's tenant for its admission."""
        self._bills[candidate.id].unused = tokens
        price = tokens * self._prefill_weight / self._weight(candidate.tenant)
        self._charge(candidate.tenant, price)

    def _settle(self, id: int, *, refund: bool) -> None:
        """A request is gone for good."""
        bill = self._bills.pop(id)
        tenant = bill.tenant
        if refund and bill.unused:
            self._refund(tenant, bill.unused * self._prefill_weight / self._weight(tenant))
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant]
            self._absent[tenant] = None
            if len(self._absent) > self._remembered:
                longest = next(iter(self._absent))
                del self._absent[longest]
                self._forget(longest)

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1)

    @abstractmethod
    def _meet(self, tenant: str) -> None:
        """A request of a tenant came that may be new."""

    @abstractmethod
    def _charge(self, tenant: str, price: float) -> None:
        """The tenant was served so much, its weight taken into account."""

    @abstractmethod
    def _refund(self, tenant: str, price: float) -> None:
        """So much of what it was charged did not happen."""

    @abstractmethod
    def _forget(self, tenant: str) -> None:
        """A tenant that has nothing in line and nothing running is forgotten."""


def _check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return {}
    if not isinstance(weights, Mapping):
        raise ParameterError(f"weights is {weights!r}: it must map tenants to numbers above 0")
    for tenant, weight in weights.items():
        if not math.isfinite(number(f"the weight of tenant {tenant!r}", weight, above=0)):
            raise ParameterError(f"the weight of tenant {tenant!r} must be finite")
    return dict(weights)
