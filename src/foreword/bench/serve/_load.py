"""`foreword bench serve`: one run, or one for each of several rates to find what a server bears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from foreword._errors import ParameterError
from foreword.bench._machine import Quietness, conditions
from foreword.bench.serve._drive import drive, first_model, get_json, session
from foreword.bench.serve._outcome import LoadError
from foreword.bench.serve._plan import make_plan
from foreword.bench.serve._settings import LoadSettings
from foreword.bench.serve._summary import summarise_run

KIND = "foreword bench serve"
CAPACITY_SHARE = 0.99
"""The share of requests that has to be good at a rate which a server bears."""


def run_load(
    settings: LoadSettings,
    rates: Sequence[float] = (),
    *,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Put loads on a server, one after the other, and return everything as JSON-ready values.

    Each rate has heads and questions of its own, so none finds the cache filled by another.
    `capacity` is the highest of the rates at which 99 % of the requests were good, and at all lower
    ones too; None where there is no such rate, or none was asked for.

    Args:
        settings: what is sent.
        rates: requests per second; empty for a trace, which has its own.

    Raises:
        LoadError: the server is not there, or cannot do what the settings need.
        ParameterError: no rate where one is needed.
    """
    if settings.trace is None and not rates:
        raise ParameterError("rate is missing: give requests per second, or a trace")
    if settings.trace is not None and rates:
        raise ParameterError("a trace has times of its own: give speed instead of rates")
    return asyncio.run(_run_load(settings, rates, say))


async def _run_load(
    settings: LoadSettings, rates: Sequence[float], say: Callable[[str], object]
) -> dict[str, Any]:
    plans = []
    for i, rate in enumerate(rates or (None,)):
        each = replace(settings, seed=settings.seed + 1_000_003 * i)
        plans.append((each, make_plan(each, rate)))
    server = await _server(settings)
    quietness = Quietness()
    runs = []
    for each, plan in plans:
        each = replace(each, model=server["model"])
        say(f"{plan.rate:.3g} requests/s: {len(plan.requests)} requests")
        run = summarise_run(each, plan, await drive(each, plan))
        runs.append(run)
        say(_line(run))
    return {
        "kind": KIND,
        **conditions(),
        "quietness": quietness.read(),
        "settings": {**settings.to_dict(), "rates": list(rates)},
        "server": server,
        "runs": runs,
        "capacity": capacity(runs),
    }


def capacity(runs: Sequence[dict[str, Any]]) -> float | None:
    """The highest rate up to which 99 % of the requests were good; None of fewer than two runs."""
    if len(runs) < 2:
        return None
    best = None
    for run in sorted(runs, key=lambda each: float(each["rate"])):
        if run["good_share"] < CAPACITY_SHARE or not run["believable"]:
            break
        best = float(run["rate"])
    return best


async def _server(settings: LoadSettings) -> dict[str, Any]:
    """What the server says about itself: its model, and its version where it tells one."""
    async with session() as http:
        model = settings.model or await first_model(http, settings)
        version = None
        try:
            told = await get_json(
                http, f"{settings.base.removesuffix('/v1')}/version", settings.tenants[0]
            )
            version = told.get("version") if isinstance(told, dict) else None
        except LoadError:
            pass  # not every server has that
    return {"model": model, "version": version}


def _line(run: dict[str, Any]) -> str:
    counts = ", ".join(f"{n} {verdict}" for verdict, n in run["counts"].items() if n)
    ttft = run["ttft"]["p99"]
    waited = "" if ttft is None else f", first token p99 {ttft:.3g} s"
    doubt = "" if run["believable"] else "; the generator fell behind: do not believe this"
    return f"  {counts}; {run['goodput']:.3g} good/s{waited}{doubt}"
