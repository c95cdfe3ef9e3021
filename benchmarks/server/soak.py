"""The server at twice what it bears, for minutes: nothing lost or mixed up, memory within bounds.

`python -m benchmarks.server.soak`; twelve minutes on two cores. First the highest rate with 99 % of
the requests within the limits is sought, by doubling and halving. Then twice as many come, at
random times and without waiting for answers, from four tenants: two alike, one with twice the
weight, one that may have four answers at a time. Every prompt has a number of its own that the
server repeats in front of its answer, and every answer is forced to consist of one token
that the next ones do not have, so that a response that belongs to another request, in part or
whole, is seen.

Generator and server share the machine, so the capacity is that of both together.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.server._process import ServerProcess, is_idle
from benchmarks.server._trial import Trial
from foreword.bench.serve import LoadSettings, Tenant, drive, make_plan, summarise_run

KEYS: list[dict[str, Any]] = [
    {"tenant": "one", "key": "soak-key-of-tenant-one"},
    {"tenant": "two", "key": "soak-key-of-tenant-two"},
    {"tenant": "heavy", "key": "soak-key-of-tenant-heavy", "weight": 2},
    {"tenant": "narrow", "key": "soak-key-of-tenant-narrow", "limits": {"concurrent": 4}},
]
LLM = {"kv_memory": "32MiB", "max_batch": 32, "dtype": "float32"}
WAITING = 64
SAMPLES = 1.0  # seconds between two looks at the server's memory


def settings_for(url: str, checks: tuple[str, ...]) -> LoadSettings:
    """The load: three heads, most of every prompt shared, short answers."""
    return LoadSettings(
        url=url,
        form="text",
        heads=6,
        head_tokens=60,
        question_tokens=8,
        answer_tokens=16,
        vocab=4000,
        tenants=tuple(Tenant(entry["tenant"], entry["key"]) for entry in KEYS),
        checks=checks,
        ttft_limit=1.0,
        tpot_limit=0.1,
        timeout=120,
        lag_limit=0.25,
    )


async def find_capacity(trial: Trial, settings: LoadSettings, seconds: float) -> float:
    """The highest rate that was good, by doubling from 4/s and then splitting the gap.

    Without the tenant that is kept to a limit of its own: it is refused at any rate.
    """
    calm = replace(settings, seconds=seconds, checks=(), tenants=settings.tenants[:-1])
    good, bad, rate = 0.0, 0.0, 4.0
    for attempt in range(12):
        each = replace(calm, seed=1000 + attempt)
        plan = make_plan(each, rate)
        found = summarise_run(each, plan, await drive(each, plan))
        trial.say(f"{rate:.3g}/s: {found['good_share']:.1%} good, {found['counts']}")
        if found["good_share"] >= 0.99:
            good = rate
        else:
            bad = rate
        if good and bad and bad / good < 1.15:
            break
        rate = 2 * rate if not bad else (good * bad) ** 0.5 if good else rate / 2
    return good


async def overload(
    server: ServerProcess, settings: LoadSettings, rate: float
) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """A run at a rate; its summary, and the server's memory (seconds, bytes) meanwhile."""
    memory: list[tuple[float, int]] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            memory.append((loop.time() - start, server.resident_bytes()))
            await asyncio.sleep(SAMPLES)

    plan = make_plan(settings, rate)
    watching = asyncio.create_task(watch())
    try:
        run = await drive(settings, plan)
    finally:
        watching.cancel()
    return summarise_run(settings, plan, run), memory


def growth(memory: list[tuple[float, int]]) -> float:
    """By what share the memory grew over the last third: its end against its beginning."""
    last = [size for _, size in memory[-max(4, len(memory) // 3) :]]
    edge = max(1, len(last) // 4)
    return median(last[-edge:]) / median(last[:edge]) - 1


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; the exit code."""
    trial = Trial("soak", "what does the server do at twice what it bears, for minutes?")
    trial.parser.add_argument("--minutes", type=float, default=10.0)
    trial.parser.add_argument("--overload", type=float, default=2.0, help="times the capacity")
    trial.parser.add_argument("--rate", type=float, help="requests per second, capacity not sought")
    trial.parser.add_argument("--checks", default="echo,marks")
    options = trial.options(arguments)
    minutes = min(options.minutes, 0.2) if options.quick else options.minutes
    trial.expect("lost", "answers without an end", exactly=0)
    trial.expect("crossed", "answers that are, in part or whole, somebody else's", exactly=0)
    trial.expect("failed", "errors other than 429 and 503", exactly=0)
    trial.expect("unclean", "refusals without Retry-After", exactly=0)
    trial.expect("refused", "share of requests that was refused", at_least=0.05)
    trial.expect("first", "99 % of first tokens of admitted requests within, s", at_most=5)
    trial.expect("goodput", "whole answers per second, of those at capacity", at_least=0.7)
    trial.expect("weight", "answers of the tenant of weight 2, of one of weight 1", at_least=1.5)
    trial.expect("growth", "growth of the server's memory over the last third", at_most=0.03)
    trial.expect("fault", "faults that the cache's own check finds afterwards", exactly=0)
    trial.expect("held", "whether anything is still held afterwards (1 is yes)", exactly=0)
    trial.expect("believable", "whether the generator kept up (1 is yes)", exactly=1)
    config = {"max_waiting": WAITING}
    with ServerProcess("nano", llm=LLM, config=config, keys=KEYS) as server:
        checks = tuple(check for check in options.checks.split(",") if check)
        settings = settings_for(server.url, checks)
        seconds = 2.0 if options.quick else 8.0
        capacity = options.rate or asyncio.run(find_capacity(trial, settings, seconds))
        rate = options.overload * capacity
        trial.say(f"capacity {capacity:.3g}/s; now {rate:.3g}/s for {minutes:g} minutes")
        settings = replace(settings, seconds=60 * minutes)
        run, memory = asyncio.run(overload(server, settings, rate))
        state = server.settled()
    counts = run["counts"]
    trial.measured("lost", counts["lost"])
    trial.measured("crossed", counts["crossed"])
    trial.measured("failed", counts["failed"])
    trial.measured("unclean", run["refused_without_retry_after"])
    trial.measured("refused", counts["refused"] / run["requests"])
    trial.measured("first", run["ttft"]["p99"])
    trial.measured("goodput", counts["ok"] / run["seconds"] / capacity if capacity else None)
    served = {name: part["counts"]["ok"] for name, part in run["tenants"].items()}
    trial.measured("weight", 2 * served["heavy"] / max(1, served["one"] + served["two"]))
    trial.measured("growth", growth(memory))
    trial.measured("fault", bool(state["fault"]))
    trial.measured("held", not is_idle(state))
    trial.measured("believable", run["believable"])
    trial.fact("capacity", capacity)
    trial.fact("run", run)
    trial.fact("memory", [(round(at, 1), size) for at, size in memory])
    trial.fact("state", state)
    rows = [
        {
            "tenant": name,
            "sent": part["requests"],
            **{verdict: n for verdict, n in part["counts"].items() if verdict != "unsent"},
            "cached": part["cached_share"],
            "first token p50, s": part["ttft"]["p50"],
            "p99": part["ttft"]["p99"],
            "refused after p99, s": part["refused_after"]["p99"],
        }
        for name, part in run["tenants"].items()
    ]
    trial.table("tenants", rows)
    for verdict, whys in run["examples"].items():
        trial.say(f"{verdict}: {whys[0]}")
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
