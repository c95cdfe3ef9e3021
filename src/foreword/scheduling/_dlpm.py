"""DLPM: longest prefix match among the tenants that have credit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from foreword.scheduling._fair import FairPolicy
from foreword.scheduling._patience import Patience
from foreword.scheduling._policy import Candidate, Door
from foreword.scheduling._settings import number
from foreword.scheduling._waiting_tree import WaitingTree


class DeficitLongestPrefixMatch(FairPolicy):
    """The longest match in the cache first, among the tenants whose deficit counter is above 0.

    Source: Cao et al., "Locality-aware Fair Scheduling in LLM Serving", arXiv 2501.14312,
    Algorithm 1. With `q[i]` the counter of tenant `i`, 0 when it is first seen:

    ```
    while there is room: offer the longest match among tenants in line with q > 0
        admitted: q[i] -= extend_weight * tokens to compute / weight[i]
    each token written: q[i] -= output_weight / weight[i]
    nobody in line has q > 0: q[i] += quantum for all tenants known with q <= 0; again if need be
    ```

    What the printed algorithm leaves open, and what is done here:

    - It goes on through its sorted list after a refill. Here each choice is made afresh: the best
      match of the moment among all who have credit. The counters move by the same rules.
    - Its loop does not end when memory is full. Here the first offer refused ends the call.
    - One refill may leave everybody at or below 0. Here the refills that it takes are made at once.
    - A tenant that comes back has the counter it left with, and refills reached it meanwhile: its
      debt, less what was refilled, or its credit, which is never above one quantum.
    - Cached tokens are free, and tokens that somebody else is about to compute count as cached: the
      first who needs them pays.
    - Preempted requests come back first, with or without credit, and are not charged again.
      `_fair.py` says what cancelled and failed ones get back. A refund never lifts a counter above
      one quantum, so a tenant cannot hoard by cancelling.

    Nothing in it keeps a request with an uncommon beginning from waiting for as long as better
    matches come, those of its own tenant included. `patience` does, at the price of some matches: a
    candidate that came as the `n`-th in line, those of all tenants counted, is overdue once it was
    passed over by `(patience - 1) * n` first admissions. Among tenants with credit the overdue go
    first, in order of arrival, and only then the best match. So it is among the first
    `patience * n` admitted after it came, where first come, first served makes it the `n`-th;
    admissions while it is overdue and its tenant has no credit are not counted.

    Every counter stays in `(-U, quantum]` with `U = extend_weight * L_input + output_weight * M`
    (Theorem A.1); `dlpm_bound` is what follows (Theorem 4.1). Neither asks which request is taken
    among those of tenants with credit, so both hold unchanged with any `patience`. An admission
    costs what it costs in `LongestPrefixMatch`, and O(log line) more if `patience` is finite; a
    refill O(tenants at or below 0).

    Args:
        quantum: tokens' worth of credit per refill. Small: close to fair sharing at every moment,
            though below a usual prompt's length it tears prefixes apart. Large: close to longest
            prefix match, which it is when infinite.
        extend_weight: price of a prompt token that has to be computed.
        output_weight: price of a token written.
        patience: how many times as many admissions as under first come, first served a request may
            wait for while its tenant has credit. 1: in order of arrival among those with credit.
            Infinity: the paper's algorithm.
        weights: shares of tenants, 1 where nothing is said.
        clients: how many absent tenants are remembered; beyond them the one away for longest is
            forgotten, with its debt or credit.

    Raises:
        ParameterError: a quantum or `patience` below 1, a weight that is not above 0, a price or
            `clients` below 0.

    Attributes:
        refills: rounds of credit given so far; how fast it grows is how much tenants compete.
    """

    name = "dlpm"

    def __init__(
        self,
        *,
        quantum: float = 4000,
        extend_weight: float = 1,
        output_weight: float = 2,
        patience: float = math.inf,
        weights: Mapping[str, float] | None = None,
        clients: int = 65_536,
    ) -> None:
        super().__init__(
            prefill_weight=number("extend_weight", extend_weight),
            output_weight=number("output_weight", output_weight),
            weights=weights,
            clients=clients,
        )
        self.quantum = number("quantum", quantum, least=1)
        self.patience = number("patience", patience, least=1)
        self.refills = 0
        self._deficits: dict[str, float] = {}
        self._debtors: set[str] = set()  # those at or below 0
        self._tree = WaitingTree()  # tenants are its groups, debtors the closed ones
        self._patience = None if self.patience == math.inf else Patience(self.patience)

    @property
    def deficits(self) -> Mapping[str, float]:
        """The counter of each tenant remembered: credit above 0, else debt. A copy."""
        return dict(self._deficits)

    def _enter(self, candidate: Candidate) -> None:
        self._tree.add(candidate, candidate.tenant)
        if self._patience is not None:
            self._patience.add(candidate.id, candidate.tenant)

    def _leave(self, candidate: Candidate) -> None:
        self._tree.remove(candidate.id)
        if self._patience is not None:
            self._patience.remove(candidate.id)

    def _serve(self, door: Door) -> None:
        while self._line and door.seats:
            candidate = self._next(door)
            if candidate is None:
                self._refill()
                continue
            extend = door.offer(candidate)
            if extend is None:
                return
            self._admitted(candidate)
            self._tree.cached(candidate.scope, candidate.path)
            self._bill(candidate, extend)
            if self._patience is not None:
                self._patience.admitted()

    def _next(self, door: Door) -> Candidate | None:
        """Whose turn it is; None if nobody in line has credit."""
        if self._patience is not None and (id := self._patience.first()) is not None:
            return self._line[id]
        return self._tree.best(door.match)

    def _returned(self, candidate: Candidate) -> None:
        self._tree.cached(candidate.scope, candidate.path)

    def _refill(self) -> None:
        """Give out quanta until somebody in line has credit. All in line are at or below 0."""
        rounds = min(self._rounds_needed(tenant) for tenant in self._tree.groups)
        self.refills += rounds
        for tenant in list(self._debtors):
            given = min(rounds, self._rounds_needed(tenant)) * self.quantum
            self._set(tenant, self._deficits[tenant] + given)

    def _rounds_needed(self, tenant: str) -> int:
        return math.floor(-self._deficits[tenant] / self.quantum) + 1

    def _meet(self, tenant: str) -> None:
        if tenant not in self._deficits:
            self._set(tenant, 0.0)

    def _charge(self, tenant: str, price: float) -> None:
        self._set(tenant, self._deficits[tenant] - price)

    def _refund(self, tenant: str, price: float) -> None:
        self._set(tenant, min(self.quantum, self._deficits[tenant] + price))

    def _forget(self, tenant: str) -> None:
        self._set(tenant, math.inf)
        del self._deficits[tenant]

    def _set(self, tenant: str, deficit: float) -> None:
        self._deficits[tenant] = deficit
        if deficit > 0:
            if tenant in self._debtors:
                self._debtors.remove(tenant)
                self._tree.open(tenant)
                if self._patience is not None:
                    self._patience.open(tenant)
        elif tenant not in self._debtors:
            self._debtors.add(tenant)
            self._tree.close(tenant)
            if self._patience is not None:
                self._patience.close(tenant)


def dlpm_bound(
    quantum: float,
    longest_input: int,
    most_running_tokens: int,
    *,
    extend_weight: float = 1,
    output_weight: float = 2,
) -> float:
    """The most that the service of two tenants can differ while both have requests in line.

    Service is `extend_weight` per prompt token computed and `output_weight` per token written; the
    bound is for tenants of weight 1 that cancel nothing. Source: arXiv 2501.14312, Theorem 4.1:
    `2 * (U + quantum)` with `U = extend_weight * L_input + output_weight * M`.

    Args:
        quantum: Q, credit per refill.
        longest_input: L_input, tokens of the longest prompt.
        most_running_tokens: M, the most tokens that fit in a running batch, prompts and answers;
            those of preempted requests count.

    Raises:
        ParameterError: a quantum that is not above 0, another argument below 0.
    """
    extend_most = number("longest_input", longest_input) * number("extend_weight", extend_weight)
    output_most = number("most_running_tokens", most_running_tokens) * number(
        "output_weight", output_weight
    )
    return 2 * (extend_most + output_most + number("quantum", quantum, above=0))
