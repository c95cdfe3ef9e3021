"""The protocol of routers, which choose a worker for each request, and what all of them keep.

A router sees what a policy sees, a `Candidate`, and hears what became of it. It asks no worker
anything, so no verb waits; each costs O(path + workers) at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import ClassVar, Protocol

from foreword._errors import ForewordError
from foreword.scheduling._policy import Candidate


class NoWorkerError(ForewordError):
    """There is no worker that a request could be routed to."""


class Router(Protocol):
    """Chooses a worker for each request. One instance serves one cluster.

    Only `route` can fail. Reports about workers that are gone, or about requests that a worker was
    never sent, are let pass: they come late, not wrong.
    """

    @property
    def name(self) -> str: ...

    def set_workers(self, workers: Iterable[Hashable]) -> None:
        """These are the workers now.

        Drops all that is known of those not named any more, requests under way among it. New ones
        start with nothing: no queue, no prefixes, no credit.
        """

    def route(self, candidate: Candidate, feasible: Collection[Hashable] | None = None) -> Hashable:
        """Choose a worker.

        Mutates no more than credit and the state of a random choice, so it may be asked again
        about the same candidate. The answer is good until the next verb; `dispatched` says that it
        was taken.

        Args:
            feasible: who can take the request now; None means all. Strangers are left out.

        Raises:
            NoWorkerError: nobody is left to choose from.
        """

    def dispatched(self, worker: Hashable, candidate: Candidate) -> None:
        """The candidate was sent to a worker, which need not be the one that `route` named."""

    def finished(self, worker: Hashable, id: int, output_tokens: int) -> None:
        """A request left its worker: done, cancelled or failed, with this many tokens written."""

    def evicted(
        self, worker: Hashable, scope: Hashable, path: Sequence[int], elements: int = 1
    ) -> None:
        """A worker dropped the last `elements` elements of a path from its cache.

        What lay behind them is gone with them. Routers without an index do not care.
        """


class QueueRouter(ABC):
    """A router that knows how many requests each worker has, and who sent them.

    A request counts from `dispatched` to `finished`. Ties between queues go to the worker that was
    sent nothing for longest, so idle workers are used in turn.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._sent: dict[Hashable, dict[int, str]] = {}  # per worker: request id -> tenant
        self._turn: dict[Hashable, int] = {}  # when a worker was last sent something
        self._clock = 0

    @property
    def workers(self) -> tuple[Hashable, ...]:
        """The workers there are, in the order they came."""
        return tuple(self._sent)

    def queue(self, worker: Hashable) -> int:
        """Requests that a worker has: running and waiting ones."""
        return len(self._sent[worker])

    def set_workers(self, workers: Iterable[Hashable]) -> None:
        named = dict.fromkeys(workers)
        for worker in [known for known in self._sent if known not in named]:
            del self._sent[worker], self._turn[worker]
            self._lost(worker)
        for worker in named:
            if worker not in self._sent:
                self._sent[worker] = {}
                self._turn[worker] = 0
                self._joined(worker)

    def route(self, candidate: Candidate, feasible: Collection[Hashable] | None = None) -> Hashable:
        if feasible is None:
            among = list(self._sent)
        else:
            allowed = set(feasible)
            among = [worker for worker in self._sent if worker in allowed]
        if not among:
            what = "no worker is known: name some with set_workers"
            if self._sent:
                what = f"none of the {len(self._sent)} workers can take it now: try again later"
            raise NoWorkerError(f"request {candidate.id} cannot be routed: {what}")
        return self._choose(candidate, among)

    def dispatched(self, worker: Hashable, candidate: Candidate) -> None:
        if worker not in self._sent or candidate.id in self._sent[worker]:
            return
        self._clock += 1
        self._turn[worker] = self._clock
        self._sent[worker][candidate.id] = candidate.tenant
        self._took(worker, candidate)

    def finished(self, worker: Hashable, id: int, output_tokens: int) -> None:
        tenant = self._sent.get(worker, {}).pop(id, None)
        if tenant is not None:
            self._wrote(worker, tenant, output_tokens)

    def evicted(  # noqa: B027
        self, worker: Hashable, scope: Hashable, path: Sequence[int], elements: int = 1
    ) -> None:
        """Without an index there is nothing to cut."""

    def least_loaded(self, among: Iterable[Hashable]) -> Hashable:
        """The one with the shortest queue. `among` is not empty."""
        return min(among, key=lambda worker: (len(self._sent[worker]), self._turn[worker]))

    @abstractmethod
    def _choose(self, candidate: Candidate, among: list[Hashable]) -> Hashable:
        """Choose among these known workers, at least one, in the order they came."""

    def _joined(self, worker: Hashable) -> None:  # noqa: B027
        """A worker is new."""

    def _lost(self, worker: Hashable) -> None:  # noqa: B027
        """A worker is gone; its queue is dropped already."""

    def _took(self, worker: Hashable, candidate: Candidate) -> None:  # noqa: B027
        """A known worker was sent a request that it did not have."""

    def _wrote(self, worker: Hashable, tenant: str, output_tokens: int) -> None:  # noqa: B027
        """A request that a known worker had has left it."""
