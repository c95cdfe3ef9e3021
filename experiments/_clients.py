"""Workloads of four clients, one of which misbehaves, as in arXiv 2501.14312; and how they fare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foreword.simulation import (
    Client,
    Conversations,
    DocumentQuestions,
    Judge,
    Percentiles,
    SimulationResult,
    Trace,
    TreesOfThought,
    synthesize,
)

GREEDY = "greedy"
"""The client that misbehaves; the others are `modest-1` and so on."""

KINDS: dict[str, dict[str, tuple[type[Client], float, dict[str, Any]]]] = {
    # Programs per second for each client and worker: enough that all have requests in line.
    "trees": {
        "S1": (TreesOfThought, 0.2, {"pause": 3.0}),
        "S2": (TreesOfThought, 0.3, {"pause": 3.0}),
    },
    "judge": {"S1": (Judge, 3.0, {}), "S2": (Judge, 3.0, {})},
    "documents": {"S1": (DocumentQuestions, 0.2, {}), "S2": (DocumentQuestions, 0.2, {})},
    "chat": {"S1": (Conversations, 2.5, {"pause": 3.0})},
}


def misbehaving(
    kind: str, how: str, *, workers: int, seconds: float, seed: int, load: float = 1.0
) -> Trace:
    """Four clients of a kind; the greedy one sends more requests (S1) or longer prefixes (S2).

    What they send grows with the number of workers, so the load of each stays the same; `load` is
    a factor on it.
    """
    make, rate, more = KINDS[kind][how]
    clients: list[Client] = []
    for number in range(4):
        client: Any = make(
            tenant=f"modest-{number}" if number else GREEDY,
            programs=max(1, round(rate * load * workers * seconds)),
            rate=rate * load * workers,
            **more,
        )
        if not number:
            client = client.with_more_requests() if how == "S1" else client.with_longer_prefixes()
        clients.append(client)
    return synthesize(f"{kind} {how}", clients, seed=seed)


def waits(result: SimulationResult, tenants: Iterable[str], until: float) -> Percentiles:
    """Seconds from arrival to the last token; who is not done counts as waiting until the end."""
    named = set(tenants)
    return Percentiles.of(
        (until if r.finished is None else r.finished) - r.arrival
        for r in result.records
        if r.tenant in named and r.arrival < until
    )


def modest(result: SimulationResult) -> list[str]:
    """The clients that behave."""
    return [tenant for tenant in result.tenants if tenant != GREEDY]


def geometric_mean(values: Iterable[float]) -> float:
    product, count = 1.0, 0
    for value in values:
        product *= value
        count += 1
    return float(product ** (1 / count))
