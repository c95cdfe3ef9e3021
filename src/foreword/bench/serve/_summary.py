"""What a run comes to: counts, percentiles, goodput, and whether the generator kept up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from foreword.bench.serve._drive import Run
from foreword.bench.serve._outcome import VERDICTS, Outcome
from foreword.bench.serve._plan import Plan
from foreword.bench.serve._settings import LoadSettings

EXAMPLES = 5
"""Of what went wrong, kept of each kind."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed; None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Median, tails and mean of the values that are there, in their unit; None of none."""
    known = [value for value in values if value is not None]
    return {
        "p50": percentile(known, 0.5),
        "p90": percentile(known, 0.9),
        "p99": percentile(known, 0.99),
        "max": max(known, default=None),
        "mean": sum(known) / len(known) if known else None,
    }


def summarise_run(settings: LoadSettings, plan: Plan, run: Run) -> dict[str, Any]:
    """A run as JSON-ready values.

    Latencies count from when a request was meant to leave, so a generator or a server that falls
    behind cannot hide it. `good` requests are whole answers within both limits; `goodput` is their
    number per second, from the start to the end of the last answer.
    """
    outcomes = run.outcomes
    lags = [each.sent - each.intended for each in outcomes if each.verdict != "unsent"]
    lag = spread(lags)
    late = spread(run.late)
    worst = max(percentile(lags, 0.99) or 0.0, late["p99"] or 0.0)
    unsent = sum(each.verdict == "unsent" for each in outcomes)
    by_tenant: dict[str, list[Outcome]] = {}
    for each in outcomes:
        by_tenant.setdefault(each.tenant, []).append(each)
    return {
        "rate": plan.rate,
        "seconds": run.seconds,
        "skipped": plan.skipped,
        **_of(outcomes, settings, run.seconds),
        "tenants": {
            name: _of(some, settings, run.seconds) for name, some in sorted(by_tenant.items())
        },
        "lag": lag,
        "late": late,
        "believable": worst <= settings.lag_limit and not unsent,
        "examples": _examples(outcomes),
    }


def _of(outcomes: Sequence[Outcome], settings: LoadSettings, seconds: float) -> dict[str, Any]:
    whole = [each for each in outcomes if each.verdict == "ok"]
    good = sum(each.good(settings.ttft_limit, settings.tpot_limit) for each in outcomes)
    refused = [each for each in outcomes if each.verdict == "refused"]
    prompt_tokens = sum(each.prompt_tokens for each in whole)
    counts = Counter(each.verdict for each in outcomes)
    return {
        "requests": len(outcomes),
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "good": good,
        "good_share": good / len(outcomes) if outcomes else 0.0,
        "goodput": good / seconds if seconds > 0 else 0.0,
        "refused_without_retry_after": sum(each.retry_after is None for each in refused),
        "prompt_tokens": prompt_tokens,
        "cached_share": (
            sum(each.cached_tokens for each in whole) / prompt_tokens if prompt_tokens else None
        ),
        "tokens": sum(each.tokens for each in whole),
        "tokens_per_second": sum(each.tokens for each in whole) / seconds if seconds > 0 else 0.0,
        "ttft": spread(each.ttft for each in whole),
        "tpot": spread(each.tpot for each in whole),
        "e2e": spread(each.ended - each.intended for each in whole),
        "refused_after": spread(each.ended - each.intended for each in refused),
    }


def _examples(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """A few reasons for each way in which requests went wrong, different ones first."""
    found: dict[str, list[str]] = {}
    for each in outcomes:
        if each.verdict == "ok":
            continue
        kept = found.setdefault(each.verdict, [])
        if len(kept) < EXAMPLES and each.why not in kept:
            kept.append(each.why)
    return found
