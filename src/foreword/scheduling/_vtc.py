"""The virtual token counter: whoever was served least goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from foreword.scheduling._fair import FairPolicy
from foreword.scheduling._lazy_heap import LazyHeap
from foreword.scheduling._policy import Candidate, Door
from foreword.scheduling._settings import number


class VirtualTokenCounter(FairPolicy):
    """The tenant with the smallest counter of service first, its requests in order of arrival.

    Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588.
    With `c[i]` the counter of tenant `i`:

    ```
    admission: the tenant of the smallest counter; c[i] += input_weight * prompt tokens / weight[i]
    each token written: c[i] += output_weight / weight[i]
    arrival, nothing of i in line: c[i] = max(c[i], the smallest counter of those in line, or where
        nobody is in line that of the tenant admitted last)
    ```

    The last line is the counter lift: no credit for time away. Prompts are charged in full, cached
    or not, and the cache plays no part in the order. Equal counters: the earlier request. Whoever
    finds no room keeps everybody else waiting. What cancelled, failed and preempted requests pay
    stands in `_fair.py`. An admission costs O(log tenants).

    Args:
        input_weight: price of a prompt token.
        output_weight: price of a token written.
        weights: shares of tenants, 1 where nothing is said.
        clients: how many absent tenants are remembered; beyond them the one away for longest is
            forgotten, with its debt.

    Raises:
        ParameterError: a price below 0, a weight that is not above 0, `clients` below 0.
    """

    name = "vtc"

    def __init__(
        self,
        *,
        input_weight: float = 1,
        output_weight: float = 2,
        weights: Mapping[str, float] | None = None,
        clients: int = 65_536,
    ) -> None:
        super().__init__(
            prefill_weight=number("input_weight", input_weight),
            output_weight=number("output_weight", output_weight),
            weights=weights,
            clients=clients,
        )
        self._counters: dict[str, float] = {}
        self._queues: dict[str, deque[Candidate]] = {}  # the first of each is in line for sure
        self._order: LazyHeap[str] = LazyHeap(self._rank)
        self._last = ""  # the tenant admitted last
        self._last_counter = 0.0  # where it stood when it was forgotten

    @property
    def counters(self) -> Mapping[str, float]:
        """Service of each tenant remembered, divided by its weight, lifts included. A copy."""
        return dict(self._counters)

    def _enter(self, candidate: Candidate) -> None:
        tenant = candidate.tenant
        if tenant in self._queues:
            self._queues[tenant].append(candidate)
            return
        least = self._order.top()
        if least is None:
            floor = self._counters.get(self._last, self._last_counter)
        else:
            floor = self._counters[least]
        self._counters[tenant] = max(self._counters[tenant], floor)
        self._queues[tenant] = deque([candidate])
        self._order.push(tenant)

    def _leave(self, candidate: Candidate) -> None:
        queue = self._queues[candidate.tenant]
        while queue and queue[0].id not in self._line:
            queue.popleft()
        if not queue:
            del self._queues[candidate.tenant]

    def _serve(self, door: Door) -> None:
        while door.seats and (tenant := self._order.top()) is not None:
            candidate = self._queues[tenant][0]
            if door.offer(candidate) is None:
                return
            self._admitted(candidate)
            self._last = tenant
            self._bill(candidate, candidate.tokens)

    def _meet(self, tenant: str) -> None:
        self._counters.setdefault(tenant, 0.0)

    def _charge(self, tenant: str, price: float) -> None:
        self._counters[tenant] += price

    def _refund(self, tenant: str, price: float) -> None:
        self._counters[tenant] -= price
        if tenant in self._queues:
            self._order.push(tenant)

    def _forget(self, tenant: str) -> None:
        counter = self._counters.pop(tenant)
        if tenant == self._last:
            self._last_counter = counter

    def _rank(self, tenant: str) -> tuple[float, int] | None:
        queue = self._queues.get(tenant)
        return None if queue is None else (self._counters[tenant], queue[0].id)


def vtc_bound(
    longest_input: int,
    most_running_tokens: int,
    *,
    input_weight: float = 1,
    output_weight: float = 2,
) -> float:
    """The most that the service of two tenants can differ while both have requests in line.

    Service is `input_weight` per prompt token admitted and `output_weight` per token written, both
    divided by the tenant's weight; the bound is for weights of 1. Source: arXiv 2401.00588, Theorem
    4.4: `2 * max(input_weight * L_input, output_weight * M)`.

    Args:
        longest_input: L_input, tokens of the longest prompt.
        most_running_tokens: M, the most tokens that fit in a running batch, prompts and answers;
            those of preempted requests count.

    Raises:
        ParameterError: an argument below 0.
    """
    input_most = number("longest_input", longest_input) * number("input_weight", input_weight)
    output_most = number("most_running_tokens", most_running_tokens) * number(
        "output_weight", output_weight
    )
    return 2 * max(input_most, output_most)
