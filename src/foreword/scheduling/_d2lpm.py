"""D²LPM: locality with a credit for every client at every worker."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence

from foreword.scheduling._policy import Candidate
from foreword.scheduling._router import QueueRouter
from foreword.scheduling._router_index import RouterIndex
from foreword.scheduling._settings import number, whole


class DistributedDeficitLongestPrefixMatch(QueueRouter):
    """Among the workers at which a client has credit: longest match first, then shortest queue.

    Source: Cao et al., "Locality-aware Fair Scheduling in LLM Serving", arXiv 2501.14312,
    Algorithm 2. With `q[i, w]` the credit of client `i` at worker `w`, 0 at first:

    ```
    G = workers that hold the longest prefix of the request
    A = workers with q[i, w] > 0;  while there is none: q[i, w] += quantum for all w
    choose the shortest queue of G ∩ A, or of A where that is empty
    dispatch: q[i, w] -= extend_weight * all prompt tokens;  finish: -= output_weight * output
    ```

    The rounds of `while` are done in one step, so a huge debt costs what a small one does. Where
    only some workers can take the request, rounds end when one of these has credit; the others
    take part up to one quantum. Cancelled and failed requests pay for what they wrote, and what
    they were charged at dispatch stays charged: the router cannot know how much was computed.

    The workers must be fair among themselves for the whole to be so: run `dlpm` on them.

    Args:
        quantum: tokens' worth of credit per refill. Small: clients spread out evenly over the
            workers. Large: they stay where their prefixes are. Infinite: credit plays no role, and
            nothing bounds the unfairness (Theorem A.5).
        extend_weight: price of a prompt token.
        output_weight: price of an output token.
        load_slack: leave workers with the longest match out if their queue exceeds the shortest by
            more requests than this. None, as in the paper: never.
        index_size: most path elements kept in the index per worker.
        clients: most clients remembered. Beyond them the one not heard of for longest is forgotten,
            with its credit and its debt.
    """

    name = "d2lpm"

    def __init__(
        self,
        *,
        quantum: float = 10_000,
        extend_weight: float = 1,
        output_weight: float = 2,
        load_slack: int | None = None,
        index_size: int = 65_536,
        clients: int = 65_536,
    ) -> None:
        super().__init__()
        self._quantum = number("quantum", quantum, above=0)
        self._extend_weight = number("extend_weight", extend_weight)
        self._output_weight = number("output_weight", output_weight)
        self._load_slack = None if load_slack is None else whole("load_slack", load_slack)
        self._clients = whole("clients", clients, least=1)
        self._credit: OrderedDict[str, dict[Hashable, float]] = OrderedDict()
        self.index = RouterIndex(whole("index_size", index_size, least=1))

    def credit(self, tenant: str) -> Mapping[Hashable, float]:
        """A client's credit at each worker: above 0 it may be sent there. Never above the quantum.

        A copy; a client nobody has seen has 0 everywhere.
        """
        credit = self._credit.get(tenant, {})
        return {worker: credit.get(worker, 0) for worker in self.workers}

    def evicted(
        self, worker: Hashable, scope: Hashable, path: Sequence[int], elements: int = 1
    ) -> None:
        self.index.cut(worker, scope, path, elements)

    def _choose(self, candidate: Candidate, among: list[Hashable]) -> Hashable:
        credit = self._credit_of(candidate.tenant)
        if all(credit.get(worker, 0) <= 0 for worker in among):
            self._refill(credit, among)
        solvent = [worker for worker in among if credit.get(worker, 0) > 0]
        held = self.index.match(candidate.scope, candidate.path, among)
        longest = max(held.values())
        holders = [worker for worker in solvent if held[worker] == longest]
        if self._load_slack is not None:
            limit = min(map(self.queue, among)) + self._load_slack
            holders = [worker for worker in holders if self.queue(worker) <= limit]
        return self.least_loaded(holders or solvent)

    def _refill(self, credit: dict[Hashable, float], among: list[Hashable]) -> None:
        """Rounds of one quantum for every worker until one of `among` has credit."""
        lift = _lift(max(credit.get(worker, 0) for worker in among), self._quantum)
        for worker in self.workers:
            credit[worker] = min(credit.get(worker, 0) + lift, self._quantum)

    def _took(self, worker: Hashable, candidate: Candidate) -> None:
        self.index.insert(worker, candidate.scope, candidate.path)
        credit = self._credit_of(candidate.tenant)
        cost = self._extend_weight * candidate.tokens
        credit[worker] = credit.get(worker, 0) - cost

    def _wrote(self, worker: Hashable, tenant: str, output_tokens: int) -> None:
        credit = self._credit_of(tenant)
        credit[worker] = credit.get(worker, 0) - self._output_weight * output_tokens

    def _lost(self, worker: Hashable) -> None:
        self.index.drop(worker)
        for credit in self._credit.values():
            credit.pop(worker, None)

    def _credit_of(self, tenant: str) -> dict[Hashable, float]:
        credit = self._credit.setdefault(tenant, {})
        self._credit.move_to_end(tenant)
        if len(self._credit) > self._clients:
            self._credit.popitem(last=False)
        return credit


def _lift(top: float, quantum: float) -> float:
    """The fewest whole quanta that lift `top`, which is 0 or less, above 0."""
    rounds = -top / quantum
    if math.isfinite(rounds):
        lift = (math.floor(rounds) + 1) * quantum
        if top + lift > 0:
            return lift
    return math.nextafter(-top, math.inf)  # quanta too fine for the debt's last digit
