"""D²LPM inside Ray Serve: a request router that keeps prefixes where they are, fairly."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from foreword.scheduling import Candidate, NoWorkerError, make_router
from foreword.serving.ray._accounts import Accounts
from foreword.serving.ray._paths import PathMaker

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Choice(NamedTuple):
    replica: ReplicaID
    candidate: Candidate


class D2LPMRequestRouter(RequestRouter):
    """Routes requests with one of Foreword's routers, D²LPM unless told otherwise.

    Source: Cao et al., arXiv 2501.14312, Algorithm 2; the router object does the choosing and this
    class keeps it informed. A request is charged when it is chosen for a replica, before it is
    sent, so a burst is spread by the same rule as a trickle. When it ends its place in the queue is
    free at once; its answer is charged with the replica's next report (`Accounts`).

    Nothing here waits for another process: what a choice needs is in this router's memory. Its view
    of what replicas hold ages instead of being corrected: it keeps as many blocks per replica as
    the replicas' caches hold, the latest used ones.

    Each handle and each proxy has a router of its own, with its own index. Their credits drift
    apart by what was consumed since the last report.

    The keyword arguments of `initialize_state`, given as `request_router_kwargs`:

    Args:
        router: name and settings as `make_router` takes them.
        block, secret, isolate: as `PathMaker`.
    """

    def initialize_state(  # type: ignore[override] # Ray passes request_router_kwargs
        self,
        *,
        router: str = "d2lpm",
        block: int = 256,
        secret: str = "",
        isolate: bool = True,
    ) -> None:
        self._paths = PathMaker(block=block, secret=secret, isolate=isolate)
        self._router = make_router(router)
        self._accounts = Accounts(self._router, self._paths.unit)
        self._ids = count()
        self._choices: dict[int, _Choice | None] = {}  # by pending request, while it is routed
        self._sent: dict[tuple[ReplicaID, str], list[int]] = {}
        self._dead: set[ReplicaID] = set()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The router's choice first, then every other replica that has room."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # else a full cluster is polled hot
        free = {r.replica_id: r for r in self.select_available_replicas(candidate_replicas)}
        if not free:  # as far as is known; asked for their queues, one of them may have room
            return [candidate_replicas]
        before = self._choices.get(id(pending_request))
        candidate = before.candidate if before else self._candidate(pending_request)
        try:
            chosen = self._router.route(candidate, free.keys())
        except NoWorkerError:  # an error here would lose the request
            return [candidate_replicas]
        assert isinstance(chosen, ReplicaID)
        if id(pending_request) in self._choices and (before is None or before.replica != chosen):
            self._withdraw(before)
            self._choices[id(pending_request)] = self._dispatch(chosen, candidate)
        return [[free.pop(chosen)], list(free.values())]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """As Ray's, but the choice is booked under the replica that the request goes to.

        Ray calls `on_request_completed` once for every request that this returned a replica for.
        """
        key = id(pending_request)
        self._choices[key] = None
        try:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except BaseException:
            self._withdraw(self._choices.pop(key))
            raise
        choice = self._choices.pop(key)
        if choice is None or choice.replica != replica.replica_id:
            self._withdraw(choice)
            choice = self._dispatch(replica.replica_id, self._candidate(pending_request))
        # Calls made on behalf of one request share its internal id.
        request = (choice.replica, pending_request.metadata.internal_request_id)
        self._sent.setdefault(request, []).append(choice.candidate.id)
        return replica

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Done, failed, cancelled or rejected: the request is in nobody's queue any more."""
        ids = self._sent.get((replica_id, internal_request_id))
        if ids:
            self._router.finished(replica_id, ids.pop(), 0)
            if not ids:
                del self._sent[replica_id, internal_request_id]

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget the replica and what it held."""
        super().on_replica_actor_died(replica_id)
        self._dead.add(replica_id)
        self._tell_workers(self.curr_replicas.values())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came, went or reported.

        One that is known to be dead is not taken back because the controller has not noticed yet,
        unless no other is left.
        """
        self._dead &= {r.replica_id for r in replicas}
        alive = [r for r in replicas if r.replica_id not in self._dead] or replicas
        super().update_replicas(alive)
        self._tell_workers(alive)

    def _tell_workers(self, replicas: Iterable[RunningReplica]) -> None:
        reports: dict[Any, dict[str, Any]] = {r.replica_id: r.routing_stats for r in replicas}
        self._router.set_workers(reports)
        self._accounts.set_workers(reports)

    def _candidate(self, pending_request: PendingRequest) -> Candidate:
        request = next(iter(pending_request.args), None)
        body = request.get("body", request) if isinstance(request, dict) else {}
        return self._paths.candidate(next(self._ids), body if isinstance(body, dict) else {})

    def _dispatch(self, replica: ReplicaID, candidate: Candidate) -> _Choice:
        self._router.dispatched(replica, candidate)
        self._accounts.dispatched(replica, candidate)
        return _Choice(replica, candidate)

    def _withdraw(self, choice: _Choice | None) -> None:
        """It went elsewhere, or nowhere. Its prompt stays charged: that is rare and small."""
        if choice is not None:
            self._router.finished(choice.replica, choice.candidate.id, 0)
