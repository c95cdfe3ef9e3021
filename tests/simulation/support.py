"""Small traces, and machines whose every step can be worked out by hand."""

from __future__ import annotations

from foreword.simulation import CostModel, Trace, TraceRequest

SECOND = CostModel(0.0, 0.0, 0.0, 0.0, overhead=1.0)
"""Every step takes a second, whatever it does."""

COMPUTE = CostModel(1.0, 1000.0, 0.0, 0.0)
"""Seconds = rows + 1000 * pairs."""

MEMORY = CostModel(0.0, 0.0, 1000.0, 1.0)
"""Seconds = kv_tokens + 1000 * steps."""

MIXED = CostModel(0.013, 0.0007, 0.11, 0.0031, overhead=0.007, overlap=0.8)
"""Everything costs something, and either side may be the slower one."""


def ask(
    arrival: float,
    path: tuple[int, ...],
    tokens: int,
    output: int,
    tenant: str = "",
    max_output: int | None = None,
) -> TraceRequest:
    return TraceRequest(arrival, path, tokens, output, tenant, max_output)


def trace(*requests: TraceRequest, unit: int = 1) -> Trace:
    return Trace("small", unit, requests)
