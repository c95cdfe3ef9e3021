"""What a simulation found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from foreword.simulation._guest import Record


class Percentiles(NamedTuple):
    """Of a set of times; between two of them linearly. All 0 of an empty set."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        ordered = sorted(values)
        return cls(*(_quantile(ordered, share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class TenantResult:
    """One tenant's share.

    Attributes:
        ttft: seconds from arrival to the first token.
        latency: seconds from arrival to the last token, of finished requests.
        service: computed prompt tokens + 2 * written tokens.
        requests: how many it sent.
    """

    ttft: Percentiles
    latency: Percentiles
    service: float
    requests: int


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation found. Times in seconds of simulated time, but for `wall_seconds`.

    Attributes:
        policy, router, workers: who decided, and how many workers there were.
        requests, finished: of the trace, and those that were done before the end.
        makespan: when the last token was written, counted from the trace's start.
        busy_seconds: spent in steps, all workers together.
        prompt_tokens: of requests that wrote at least one token.
        computed_tokens: those of them that were computed, again after a preemption included; a
            token computed once more for its logits alone is not counted.
        recomputed_tokens: written tokens that were computed again after a preemption.
        generated_tokens: tokens written.
        hit_rate: 1 - computed_tokens / prompt_tokens.
        ideal_hit_rate: what a cache without limits would reach over the whole trace.
        tokens_per_second: prompt and generated tokens per second of makespan.
        optimum_seconds: a lower bound for the makespan of the whole trace as a batch.
        optimum_share: optimum_seconds / makespan, when all requests were done; else 0.
        ttft: from arrival to first token.
        latency: from arrival to last token.
        jain: Jain's index of the service that tenants got while all of them had requests, or of
            all their service where that never happened.
        service: by tenant: 1 per prompt token that had to be computed, 2 per token written.
        service_gap: the largest difference in service between two tenants over a time in which both
            had a request waiting throughout (DLPM, arXiv 2501.14312, Theorem 4.1).
        tenants: more by tenant.
        windows: service by tenant in windows of `window` seconds, the last one cut off.
        window: seconds in one of them.
        preemptions: how often a running request was put back in line.
        steps: of all workers.
        wall_seconds: what the simulation itself took.
        records: one for each request, in the trace's order.
    """

    policy: str
    router: str | None
    workers: int
    requests: int
    finished: int
    makespan: float
    busy_seconds: float
    prompt_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    generated_tokens: int
    hit_rate: float
    ideal_hit_rate: float
    tokens_per_second: float
    optimum_seconds: float
    optimum_share: float
    ttft: Percentiles
    latency: Percentiles
    jain: float
    service: dict[str, float]
    service_gap: float
    tenants: dict[str, TenantResult]
    windows: list[dict[str, float]]
    window: float
    preemptions: int
    steps: int
    wall_seconds: float
    records: list[Record] = field(repr=False)

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        """JSON-ready values; the records only if wanted."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["ttft"] = self.ttft._asdict()
        values["latency"] = self.latency._asdict()
        values["tenants"] = {
            name: asdict(tenant)
            | {"ttft": tenant.ttft._asdict(), "latency": tenant.latency._asdict()}
            for name, tenant in self.tenants.items()
        }
        values["records"] = [record._asdict() for record in self.records]
        if not records:
            del values["records"]
        return values


@dataclass(frozen=True)
class ReplayResult:
    """What a replay found.

    Attributes:
        policy: who decided.
        requests: of the trace.
        prompt_tokens: of all prompts.
        computed_tokens: those that were not in the cache when their turn came.
        hit_rate: 1 - computed_tokens / prompt_tokens.
        ideal_hit_rate: what a cache without limits would reach.
        seconds: wall time of the replay, the policy's own among it.
        order: the requests in the order in which they were admitted.
    """

    policy: str
    requests: int
    prompt_tokens: int
    computed_tokens: int
    hit_rate: float
    ideal_hit_rate: float
    seconds: float
    order: list[int] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the order."""
        values = asdict(self)
        del values["order"]
        return values


def tenant_results(records: Iterable[Record], service: dict[str, float]) -> dict[str, TenantResult]:
    """The records by tenant, in the order of `service`."""
    grouped: dict[str, list[Record]] = {tenant: [] for tenant in service}
    for record in records:
        grouped[record.tenant].append(record)
    return {
        tenant: TenantResult(first_token_times(own), latencies(own), service[tenant], len(own))
        for tenant, own in grouped.items()
    }


def first_token_times(records: Iterable[Record]) -> Percentiles:
    """Seconds from arrival to the first token, of those that wrote one."""
    return Percentiles.of(r.first_token - r.arrival for r in records if r.first_token is not None)


def latencies(records: Iterable[Record]) -> Percentiles:
    """Seconds from arrival to the last token, of those that are done."""
    return Percentiles.of(r.finished - r.arrival for r in records if r.finished is not None)


def _quantile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
