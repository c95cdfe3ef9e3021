"""Short forms of the trials in `benchmarks/server`: overload, and clients that vanish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.server._vanishing import Vanishing, vanish
from foreword.bench.serve import LoadSettings, Tenant, drive, make_plan, summarise_run
from foreword.serving.http import Keyring, ServerConfig, Service
from tests.serving.http.conftest import LiveServer, assert_idle

KEYS: list[dict[str, Any]] = [
    {"tenant": "one", "key": "test-key-of-tenant-one"},
    {"tenant": "narrow", "key": "test-key-of-tenant-narrow", "limits": {"concurrent": 1}},
]
LOAD = LoadSettings(form="text", heads=2, head_tokens=12, question_tokens=4, answer_tokens=6,
                    checks=("echo",), timeout=60)  # fmt: skip

Start = Callable[[Service], LiveServer]


def test_too_many_requests_are_answered_whole_or_refused_with_a_time(
    make_service: Callable[..., Service], start_server: Start
) -> None:
    config = ServerConfig(max_waiting=4)
    live = start_server(make_service(config=config, keys=Keyring.of(KEYS)))
    tenants = tuple(Tenant(entry["tenant"], entry["key"]) for entry in KEYS)
    settings = replace(LOAD, url=live.url, requests=150, tenants=tenants)
    plan = make_plan(settings, 3000)
    run = asyncio.run(drive(settings, plan))
    summary = summarise_run(settings, plan, run)
    wrong = [o.why for o in run.outcomes if o.verdict not in ("ok", "refused")]
    assert wrong == []
    assert summary["counts"]["ok"] > 0
    assert {o.status for o in run.outcomes if o.verdict == "refused"} == {429, 503}
    assert summary["refused_without_retry_after"] == 0
    assert live.service.gate.answers == 0
    assert_idle(live.service.llm)


def test_clients_that_vanish_leave_nothing_behind(live_server: LiveServer) -> None:
    """Beside them patient clients are answered: each with its own prompt and with its own token."""
    marked = {"checks": ("echo", "marks"), "marks": 4, "vocab": 4000}
    settings = replace(LOAD, url=live_server.url, requests=12, **marked)
    plan = make_plan(settings, 20)

    async def both() -> list[str]:
        patient = asyncio.create_task(drive(settings, plan))
        seen = await vanish(Vanishing(live_server.url, 48, at_once=24, answer_tokens=300))
        assert seen["fin"] > 0 < seen["reset"]
        assert seen["within the answer"] > 0 < seen["before the answer"]
        return [outcome.why for outcome in (await patient).outcomes if outcome.verdict != "ok"]

    assert asyncio.run(both()) == []
    service, open_requests = live_server.service, live_server.server.app.state.open_requests
    end = time.monotonic() + 30
    while (service.gate.answers or open_requests) and time.monotonic() < end:
        time.sleep(0.02)
    assert service.gate.answers == 0
    assert not open_requests
    asyncio.run(service.llm.run(lambda engine: None))  # what the gate let go, the engine has heard
    assert_idle(service.llm)


@pytest.mark.slow
def test_the_trials_themselves_run() -> None:
    from benchmarks.server import fuzz, soak, vanish

    assert fuzz.main(["--quick"]) == 0
    # How fast the machine is and how quiet decides about the rest: here they only have to end.
    assert vanish.main(["--quick", "--checks", "echo"]) in (0, 1)
    assert soak.main(["--quick", "--checks", "echo", "--rate", "40"]) in (0, 1)
