"""Who was served how much, and how far apart tenants came that both waited.

Service is what VTC (arXiv 2401.00588) and DLPM (arXiv 2501.14312) count: a weight for each prompt
token that had to be computed, charged on admission, and another for each token written.
"""

from __future__ import annotations

from collections.abc import Mapping

EXTEND_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0


class Ledger:
    """Service by tenant, while things happen.

    A tenant is *backlogged* while it has a request in line, *active* while it has one at all.

    Attributes:
        service: all that each tenant was served.
        together: what each was served while all tenants were active.
        gap: the largest |W_f(t1, t2) - W_g(t1, t2)| of two tenants that were both backlogged
            throughout [t1, t2): the quantity of DLPM's Theorem 4.1.
        windows: what each was served in each closed window of time.
    """

    def __init__(self, tenants: tuple[str, ...]) -> None:
        self.service = dict.fromkeys(tenants, 0.0)
        self.together = dict.fromkeys(tenants, 0.0)
        self.gap = 0.0
        self.windows: list[dict[str, float]] = []
        self._closed = dict.fromkeys(tenants, 0.0)  # service when the last window closed
        self._waiting = dict.fromkeys(tenants, 0)
        self._unfinished = dict.fromkeys(tenants, 0)
        self._active = 0
        self._ranges: dict[tuple[str, str], list[float]] = {}  # least and largest W_f - W_g

    def arrived(self, tenant: str) -> None:
        """A new request is in line."""
        self._unfinished[tenant] += 1
        self._active += self._unfinished[tenant] == 1
        self._joins(tenant)

    def admitted(self, tenant: str, extend: int) -> None:
        """A request left the line; `extend` of its tokens have to be computed."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            self._ranges = {pair: r for pair, r in self._ranges.items() if tenant not in pair}
        self._serve(tenant, EXTEND_WEIGHT * extend)
        self._compare()

    def preempted(self, tenant: str, uncomputed: int) -> None:
        """A running request is back in line; what was not computed for it is not charged."""
        self._serve(tenant, -EXTEND_WEIGHT * uncomputed)
        self._compare()
        self._joins(tenant)

    def wrote(self, writers: Mapping[str, int], tokens: int) -> None:
        """So many requests of each tenant wrote `tokens` tokens each."""
        for tenant, count in writers.items():
            self._serve(tenant, OUTPUT_WEIGHT * count * tokens)
        self._compare()

    def finished(self, tenant: str) -> None:
        """A request is done."""
        self._unfinished[tenant] -= 1
        self._active -= self._unfinished[tenant] == 0

    def close_window(self) -> None:
        """A window of time ends here."""
        self.windows.append(
            {tenant: total - self._closed[tenant] for tenant, total in self.service.items()}
        )
        self._closed = dict(self.service)

    def _serve(self, tenant: str, amount: float) -> None:
        self.service[tenant] += amount
        if self._active == len(self.service):
            self.together[tenant] += amount

    def _joins(self, tenant: str) -> None:
        self._waiting[tenant] += 1
        if self._waiting[tenant] > 1:
            return
        for other, waiting in self._waiting.items():
            if waiting and other != tenant:
                apart = self.service[tenant] - self.service[other]
                self._ranges[tenant, other] = [apart, apart]

    def _compare(self) -> None:
        service = self.service
        for (one, other), extremes in self._ranges.items():
            apart = service[one] - service[other]
            if apart < extremes[0]:
                extremes[0] = apart
            elif apart > extremes[1]:
                extremes[1] = apart
            else:
                continue
            self.gap = max(self.gap, extremes[1] - extremes[0])


def jain_index(values: list[float]) -> float:
    """(sum x)^2 / (n * sum x^2): 1 if all are equal, or nobody has any; 1/n if one has all."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
