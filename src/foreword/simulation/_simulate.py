"""The event loop: arrivals, and steps that end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf, isfinite
from typing import cast

from foreword._errors import ParameterError
from foreword.cache import Node
from foreword.scheduling import Candidate, Policy, Router
from foreword.simulation._cost import CostModel
from foreword.simulation._guest import NAMESPACE, SimulatedGuest
from foreword.simulation._ledger import Ledger, jain_index
from foreword.simulation._optimum import optimum_seconds
from foreword.simulation._result import (
    SimulationResult,
    first_token_times,
    latencies,
    tenant_results,
)
from foreword.simulation._settings import check_fits, policy_maker, router_for
from foreword.simulation._trace import Trace
from foreword.simulation._worker import Worker, WorkerConfig

PROGRESS_EVERY = 256  # events between two calls of `on_progress`


def simulate(
    trace: Trace,
    *,
    policy: str | Callable[[], Policy] = "fcfs",
    cost: CostModel,
    worker: WorkerConfig,
    workers: int = 1,
    router: str | Router | None = None,
    seed: int = 0,
    until: float | None = None,
    window: float = 60.0,
    report_delay: float = 0.0,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> SimulationResult:
    """Run a trace on simulated workers: the engine's policies, desk and prefix tree, and a clock.

    A worker goes in steps, as the engine does. A step computes one token for each request that
    writes, and pieces of prompts in the order of admission until it has `step_tokens`; requests
    are admitted between steps. What a step takes is the cost model's. Steps in which nothing but
    writing happens pass in one jump, which changes no result.

    Blocks are the cache's unit: a request's text takes whole blocks. What is written fills the
    prompt's last block, then blocks that no other request can share, which stay in the cache
    until they are evicted.

    Args:
        policy: a name as `make_policy` takes it, or what makes a policy: each worker has its own.
            One by name that weighs computing against reading weighs them as `cost` does.
        cost: what a step takes.
        worker: the limits of each worker.
        workers: how many there are.
        router: who chooses a worker for each request: a name as `make_router` takes it, or a
            router without workers; default `round-robin` where there are several workers.
        seed: for policies and routers that draw.
        until: stop at this time; requests that are not done then have no end in the records.
        window: seconds in each of the result's windows.
        report_delay: seconds until the router hears that a worker evicted something.
        on_progress: called now and then with requests done, requests, and simulated seconds.

    Raises:
        ParameterError: impossible settings, an unknown policy or router, or a request that could
            not run alone.
    """
    started = time.perf_counter()
    _check(workers, until, window, report_delay)
    check_fits(trace, worker.cache_tokens, answers=True)
    make = policy_maker(policy, seed, cost)
    if router is None and workers > 1:
        router = "round-robin"
    cluster = _Cluster(
        trace,
        [make() for _ in range(workers)],
        None if router is None else router_for(router, seed),
        cost,
        worker,
        report_delay,
    )
    cluster.run(inf if until is None else until, window, on_progress)
    return cluster.result(
        optimum_seconds(trace, cost, worker, workers), window, time.perf_counter() - started
    )


class _Cluster:
    """Workers that share a clock, a ledger and a router."""

    def __init__(
        self,
        trace: Trace,
        policies: list[Policy],
        router: Router | None,
        cost: CostModel,
        config: WorkerConfig,
        report_delay: float,
    ) -> None:
        self.trace = trace
        self.router = router
        self.ledger = Ledger(trace.tenants)
        fresh = count(1 + max(max(request.path) for request in trace.requests))
        self.workers = [
            Worker(policy, cost, config, trace.unit, self.ledger, fresh) for policy in policies
        ]
        self.policy_name = policies[0].name
        self.guests: list[SimulatedGuest] = []
        self.sent_to: list[int] = []
        self.finished = 0
        self.now = 0.0
        self._delay = report_delay
        self._reports: deque[tuple[float, int, list[int], int]] = deque()
        if router is not None:
            router.set_workers(range(len(self.workers)))
            for index, worker in enumerate(self.workers):
                worker.tree.on_evict = self._reporter(index)

    def run(
        self, until: float, window: float, on_progress: Callable[[int, int, float], None] | None
    ) -> None:
        """Take one event after the other until all is done or time is up."""
        requests = self.trace.requests
        total = len(requests)
        closes = window
        for events in count(1):
            coming = len(self.guests)
            arrival = requests[coming].arrival if coming < total else inf
            step, who = min(
                ((w.end, i) for i, w in enumerate(self.workers) if w.end is not None),
                default=(inf, -1),
            )
            now = min(arrival, step)
            end = min(now, until)
            while closes <= end and isfinite(end):
                self._settle(closes)
                self.ledger.close_window()
                closes += window
            if now > until:
                self._settle(until)
                self.now = until
            if now > until or now == inf:
                self.ledger.close_window()
                return
            self.now = now
            if len(self.workers) > 1 and len(self.trace.tenants) > 1:
                self._settle(now)
            if arrival <= step:
                self._arrivals(now)
            else:
                worker = self.workers[who]
                worker.complete()
                self._departures(who, worker)
                worker.start(now)
            if on_progress is not None and events % PROGRESS_EVERY == 0:
                on_progress(self.finished, total, now)

    def _settle(self, now: float) -> None:
        for worker in self.workers:
            worker.settle(now)

    def _arrivals(self, now: float) -> None:
        """All that come at one instant, before any idle worker begins a step."""
        requests = self.trace.requests
        called: dict[int, None] = {}
        while len(self.guests) < len(requests) and requests[len(self.guests)].arrival == now:
            index = len(self.guests)
            request = requests[index]
            told = self.trace.largest_output if request.max_output is None else request.max_output
            guest = SimulatedGuest(index, request, told)
            where = 0 if self.router is None else self._route(self.router, guest, told)
            self.guests.append(guest)
            self.sent_to.append(where)
            self.workers[where].arrive(guest, now)
            called[where] = None
        for where in called:
            if self.workers[where].end is None:
                self.workers[where].start(now)

    def _route(self, router: Router, guest: SimulatedGuest, told: int) -> int:
        while self._reports and self._reports[0][0] <= self.now:
            _, where, path, elements = self._reports.popleft()
            router.evicted(where, NAMESPACE, path, elements)
        candidate = Candidate(
            id=guest.arrival,
            path=self.trace.requests[guest.arrival].path,
            tokens=guest.prompt,
            max_output=told,
            tenant=guest.tenant,
            scope=NAMESPACE,
        )
        where = cast(int, router.route(candidate))
        router.dispatched(where, candidate)
        return where

    def _departures(self, who: int, worker: Worker) -> None:
        for guest in worker.departed:
            self.finished += 1
            if self.router is not None:
                self.router.finished(who, guest.arrival, guest.output)
        worker.departed.clear()

    def _reporter(self, where: int) -> Callable[[Node], None]:
        def report(node: Node) -> None:
            pieces = []
            above: Node | None = node
            while above is not None:
                pieces.append(above.tokens)
                above = above.parent
            path = [token for piece in reversed(pieces) for token in piece]
            self._reports.append((self.now + self._delay, where, path, len(node.tokens)))

        return report

    def result(self, optimum: float, window: float, wall_seconds: float) -> SimulationResult:
        """What there is to say at the end."""
        trace, ledger = self.trace, self.ledger
        came = zip(self.guests, trace.requests, self.sent_to, strict=False)
        records = [guest.record(request, where) for guest, request, where in came]
        served = [
            (record, request.tokens)
            for record, request in zip(records, trace.requests, strict=False)
            if record.first_token is not None
        ]
        prompt_tokens = sum(tokens for _, tokens in served)
        computed = sum(record.computed for record, _ in served)
        generated = sum(record.output for record, _ in served)
        done = len(records) == len(trace) and self.finished == len(trace)
        makespan = max((r.finished or 0.0 for r in records), default=0.0) if done else self.now
        together = list(ledger.together.values())
        return SimulationResult(
            policy=self.policy_name,
            router=None if self.router is None else self.router.name,
            workers=len(self.workers),
            requests=len(trace),
            finished=self.finished,
            makespan=makespan,
            busy_seconds=sum(worker.busy_seconds for worker in self.workers),
            prompt_tokens=prompt_tokens,
            computed_tokens=computed,
            recomputed_tokens=sum(guest.recomputed for guest in self.guests),
            generated_tokens=generated,
            hit_rate=1 - computed / prompt_tokens if prompt_tokens else 0.0,
            ideal_hit_rate=trace.ideal_hit_rate,
            tokens_per_second=(prompt_tokens + generated) / makespan if makespan else 0.0,
            optimum_seconds=optimum,
            optimum_share=optimum / makespan if done and makespan else 0.0,
            ttft=first_token_times(records),
            latency=latencies(records),
            jain=jain_index(together if any(together) else list(ledger.service.values())),
            service=dict(ledger.service),
            service_gap=ledger.gap,
            tenants=tenant_results(records, ledger.service),
            windows=ledger.windows,
            window=window,
            preemptions=sum(worker.preemptions for worker in self.workers),
            steps=sum(worker.steps for worker in self.workers),
            wall_seconds=wall_seconds,
            records=records,
        )


def _check(workers: int, until: float | None, window: float, report_delay: float) -> None:
    if workers < 1:
        raise ParameterError(f"{workers} workers: there must be at least 1")
    if until is not None and not until > 0:
        raise ParameterError(f"until is {until}: the simulation must last longer than 0 seconds")
    if not (window > 0 and isfinite(window)):
        raise ParameterError(f"window is {window}: it must be a positive number of seconds")
    if not (report_delay >= 0 and isfinite(report_delay)):
        raise ParameterError(f"report_delay is {report_delay}: it must be 0 seconds or more")
