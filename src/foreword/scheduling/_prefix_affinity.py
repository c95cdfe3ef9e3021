"""To the worker that holds most of the prompt, unless the queues are too uneven."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from foreword.scheduling._policy import Candidate
from foreword.scheduling._router import QueueRouter
from foreword.scheduling._router_index import RouterIndex
from foreword.scheduling._settings import number, truth, whole


class PrefixAffinity(QueueRouter):
    """Longest match above a threshold, else the least loaded; load first where queues are uneven.

    The rule of SGLang's cache-aware router: queues are uneven if the longest exceeds the shortest
    by more than `load_slack` requests *and* by more than the factor `load_ratio`; then the
    shortest queue gets the request. It knows no tenants, so who floods gets most.

    Args:
        threshold: share of the prompt, 0 to 1, that a worker must hold more of to be chosen for it.
        load_slack: requests by which the longest queue may exceed the shortest.
        load_ratio: factor by which it may.
        emptiest: below the threshold choose the worker that holds least, not the shortest queue.
        index_size: most path elements kept in the index per worker.
    """

    name = "prefix-affinity"

    def __init__(
        self,
        *,
        threshold: float = 0.3,
        load_slack: int = 64,
        load_ratio: float = 1.5,
        emptiest: bool = False,
        index_size: int = 65_536,
    ) -> None:
        super().__init__()
        self._threshold = number("threshold", threshold)
        self._load_slack = whole("load_slack", load_slack)
        self._load_ratio = number("load_ratio", load_ratio, least=1)
        self._emptiest = truth("emptiest", emptiest)
        self.index = RouterIndex(whole("index_size", index_size, least=1))

    def evicted(
        self, worker: Hashable, scope: Hashable, path: Sequence[int], elements: int = 1
    ) -> None:
        self.index.cut(worker, scope, path, elements)

    def _choose(self, candidate: Candidate, among: list[Hashable]) -> Hashable:
        queues = [self.queue(worker) for worker in among]
        low, high = min(queues), max(queues)
        if high - low > self._load_slack and high > low * self._load_ratio:
            return self.least_loaded(among)
        held = self.index.match(candidate.scope, candidate.path, among)
        best = max(held.values())
        if best and best > self._threshold * len(candidate.path):
            return self.least_loaded(worker for worker in among if held[worker] == best)
        if self._emptiest:
            least = min(map(self.index.size, among))
            return self.least_loaded(w for w in among if self.index.size(w) == least)
        return self.least_loaded(among)

    def _took(self, worker: Hashable, candidate: Candidate) -> None:
        self.index.insert(worker, candidate.scope, candidate.path)

    def _lost(self, worker: Hashable) -> None:
        self.index.drop(worker)
