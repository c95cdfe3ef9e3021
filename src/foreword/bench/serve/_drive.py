"""An open loop: every request leaves at its time, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.bench.serve._marks import find_marks
from foreword.bench.serve._outcome import LoadError, Outcome
from foreword.bench.serve._plan import Plan
from foreword.bench.serve._request import Asker, Mark, authorization
from foreword.bench.serve._settings import LoadSettings, Tenant

if TYPE_CHECKING:
    import aiohttp

HEAD_START = 0.05
"""Seconds between making a run and its first moment."""
WATCH = 0.02
"""Seconds between two looks at whether the generator itself is late."""


@dataclass(frozen=True)
class Run:
    """What came of a plan.

    Attributes:
        outcomes: one per request, by number.
        seconds: from the start to the last answer's end.
        late: how late the generator's own clock was called, each `WATCH` seconds: what it was late
            by is in every moment it read.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    late: tuple[float, ...]


async def drive(
    settings: LoadSettings,
    plan: Plan,
    *,
    on_outcome: Callable[[Outcome], object] | None = None,
) -> Run:
    """Send a plan's requests and wait for the last answer. `on_outcome` hears of each as it ends.

    Raises:
        LoadError: the server is not there, lists no model, or does not do what the checks need.
    """
    async with session() as http:
        model = settings.model or await first_model(http, settings)
        marks: tuple[Mark, ...] = ()
        if "marks" in settings.checks:
            lengths = {request.answer_tokens for request in plan.requests}
            marks = await find_marks(http, settings, model, lengths)
        start = time.perf_counter() + HEAD_START

        def clock() -> float:
            return time.perf_counter() - start

        asker = Asker(http, settings, model, plan.asked, marks, clock)
        late: list[float] = []
        watch = asyncio.create_task(_watch(late))
        try:
            outcomes = await _send_all(settings, plan, asker, clock, on_outcome)
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
    _find_doubles(outcomes)
    return Run(tuple(outcomes), clock(), tuple(late))


async def _send_all(
    settings: LoadSettings,
    plan: Plan,
    asker: Asker,
    clock: Callable[[], float],
    on_outcome: Callable[[Outcome], object] | None,
) -> list[Outcome]:
    open_tasks: set[asyncio.Task[Outcome]] = set()
    outcomes: list[Outcome | None] = [None] * len(plan.requests)

    def ended(task: asyncio.Task[Outcome]) -> None:
        open_tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            return
        outcome = task.result()
        outcomes[outcome.number] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    try:
        tasks = []
        for planned in plan.requests:
            wait = planned.at - clock()
            if wait > 0:
                await asyncio.sleep(wait)
            if len(open_tasks) >= settings.max_open:
                outcomes[planned.number] = Outcome(
                    planned.number,
                    planned.tenant.name,
                    planned.at,
                    verdict="unsent",
                    why=f"{settings.max_open} requests were open",
                )
                continue
            task = asyncio.create_task(asker.ask(planned))
            open_tasks.add(task)
            tasks.append(task)
            task.add_done_callback(ended)
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)  # the last callbacks
    finally:
        for task in list(open_tasks):
            task.cancel()
    return [outcome for outcome in outcomes if outcome is not None]


async def _watch(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + WATCH
        await asyncio.sleep(WATCH)
        late.append(max(0.0, time.perf_counter() - due))


def _find_doubles(outcomes: list[Outcome]) -> None:
    """Two answers of one name are one answer that went to two."""
    seen: set[str] = set()
    for outcome in outcomes:
        if outcome.verdict == "ok" and outcome.response_id:
            if outcome.response_id in seen:
                outcome.verdict = "crossed"
                outcome.why = f"another answer was called {outcome.response_id} too"
            seen.add(outcome.response_id)


def session() -> aiohttp.ClientSession:
    """A session without a limit on connections, to be used in the running event loop.

    Raises:
        LoadError: aiohttp is not installed.
    """
    try:
        import aiohttp
    except ImportError:
        raise LoadError(
            "the load generator needs aiohttp: pip install 'foreword[bench]', "
            "or pip install aiohttp"
        ) from None
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)


async def first_model(http: aiohttp.ClientSession, settings: LoadSettings) -> str:
    """The name of the first model that the server lists.

    Raises:
        LoadError: it does not answer, refuses, or lists none.
    """
    listed = await get_json(http, f"{settings.base}/models", settings.tenants[0])
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise LoadError(f"{settings.base}/models lists no model: name one") from None


async def get_json(http: aiohttp.ClientSession, url: str, tenant: Tenant) -> Any:
    """What a GET gives.

    Raises:
        LoadError: no connection, a status other than 200, or no JSON.
    """
    import aiohttp

    try:
        async with http.get(url, headers=authorization(tenant)) as response:
            if response.status != 200:
                text = (await response.text(errors="replace"))[:200]
                raise LoadError(f"{url} answers {response.status}: {text}")
            return await response.json(content_type=None)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        raise LoadError(f"cannot read {url}: {error}") from None
