"""What a run says of every way in which a server can answer, or not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from foreword.bench.serve import LoadError, LoadSettings, Tenant, drive, make_plan, summarise_run
from foreword.bench.serve._drive import Run
from tests.bench.serve.stub import Behaviour, stub_server

FAST: dict[str, Any] = {"requests": 12, "head_tokens": 4, "question_tokens": 3, "answer_tokens": 4}


def load(behaviour: Behaviour, rate: float = 2000, **settings: Any) -> tuple[Run, dict[str, Any]]:
    with stub_server(behaviour) as url:
        chosen = LoadSettings(**{"url": url, "marks": 4, "vocab": 60} | FAST | settings)
        plan = make_plan(chosen, rate)
        run = asyncio.run(drive(chosen, plan))
        return run, summarise_run(chosen, plan, run)


def whys(run: Run) -> list[str]:
    return [outcome.why for outcome in run.outcomes if outcome.verdict != "ok"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": "text", "checks": ("echo",)},
        {"form": "text", "checks": ("echo", "marks")},
        {"checks": ("marks",)},
        {"endpoint": "chat", "form": "text", "checks": ("marks",)},
    ],
)
def test_a_server_that_answers_well_is_found_to(settings: dict[str, Any]) -> None:
    run, summary = load(Behaviour(cached=2), **settings)
    assert whys(run) == []
    assert summary["counts"]["ok"] == 12
    assert summary["tokens"] == 48
    assert all(outcome.cached_tokens == 2 for outcome in run.outcomes)


@pytest.mark.parametrize(
    ("fault", "verdict", "reason"),
    [
        ({"cut": {5}}, "lost", "ClientPayloadError"),
        ({"drop": {5}}, "lost", "without its end"),
        ({"error_frame": {5}}, "failed", "the engine has failed"),
        ({"short": {5}}, "failed", "3 tokens came of 4"),
        ({"wrong_echo": {5}}, "crossed", "another prompt"),
        ({"wrong_token": {5}}, "crossed", "not made of token"),
        ({"same_id": {5, 6}}, "crossed", "called cmpl-same too"),
        ({"mixed_ids": {5}}, "crossed", "two responses"),
        ({"refuse": {5: 500}}, "failed", "500"),
        ({"refuse": {5: 429}}, "refused", "429"),
        ({"refuse": {5: 503}}, "refused", "503"),
    ],
)
def test_each_fault_has_its_name(fault: dict[str, Any], verdict: str, reason: str) -> None:
    run, summary = load(Behaviour(**fault), form="text", checks=("echo", "marks"))
    assert summary["counts"][verdict] == 1
    assert summary["counts"]["ok"] == 11
    assert reason in whys(run)[0]


def test_an_answer_that_never_comes_is_lost() -> None:
    run, summary = load(Behaviour(hang={3}), timeout=0.3)
    assert summary["counts"]["lost"] == 1
    assert "TimeoutError" in whys(run)[0]


def test_a_refusal_tells_when_to_come_back() -> None:
    run, _ = load(Behaviour(refuse={1: 503}, retry_after="7"))
    assert [each.retry_after for each in run.outcomes if each.verdict == "refused"] == [7]
    _, summary = load(Behaviour(refuse={1: 503}, retry_after=None))
    assert summary["refused_without_retry_after"] == 1


def test_nobody_there_is_said_before_anything_is_sent() -> None:
    settings = LoadSettings(url="http://127.0.0.1:9", requests=1)
    with pytest.raises(LoadError, match=r"cannot read http://127\.0\.0\.1:9/v1/models"):
        asyncio.run(drive(settings, make_plan(settings, 1)))


def test_marks_need_a_server_that_takes_a_bias() -> None:
    with pytest.raises(LoadError, match="marks need logit_bias"):
        load(Behaviour(bias=False), checks=("marks",))


def test_marks_are_tokens_that_can_be_told_apart() -> None:
    with pytest.raises(LoadError, match="can be told from others, 7 are wanted"):
        load(Behaviour(), checks=("marks",), vocab=7, marks=7)  # id 0 is no text in the stub


def test_a_tenant_is_told_by_its_key_or_by_name() -> None:
    did = Behaviour()
    tenants = (Tenant("a", "secret-of-a", 3), Tenant("b"))
    _, summary = load(did, tenants=tenants, requests=40)
    of_a = [body for body, key in zip(did.requests, did.keys, strict=True) if key]
    of_b = [body for body, key in zip(did.requests, did.keys, strict=True) if not key]
    assert {key for key in did.keys if key} == {"Bearer secret-of-a"}
    assert not any("user" in body for body in of_a)
    assert {body["user"] for body in of_b} == {"b"}
    assert summary["tenants"]["a"]["requests"] == len(of_a) > len(of_b) > 0


def test_requests_leave_on_time_however_slow_the_answers_are() -> None:
    """A closed loop would send the second request after the first was answered."""
    run, _ = load(Behaviour(first_pause=0.4), rate=400, requests=20)
    assert max(outcome.sent for outcome in run.outcomes) < min(o.ended for o in run.outcomes)


def test_waiting_counts_from_when_a_request_was_meant_to_leave() -> None:
    """The generator is held up after its first request: the others' waits contain that."""
    held: list[float] = []

    def hold(outcome: object) -> None:
        if not held:
            held.append(time.perf_counter())
            time.sleep(0.3)

    with stub_server(Behaviour()) as url:
        settings = LoadSettings(url=url, **FAST | {"requests": 30})
        plan = make_plan(settings, 300)
        run = asyncio.run(drive(settings, plan, on_outcome=hold))
    summary = summarise_run(settings, plan, run)
    assert max(outcome.ttft or 0 for outcome in run.outcomes) > 0.2
    assert summary["lag"]["max"] > 0.2
    assert not summary["believable"]


def test_what_cannot_be_sent_makes_a_run_that_is_not_believed() -> None:
    _, summary = load(Behaviour(first_pause=0.2), max_open=3)
    assert summary["counts"] == {
        "ok": 3, "refused": 0, "failed": 0, "lost": 0, "crossed": 0, "unsent": 9
    }  # fmt: skip
    assert not summary["believable"]
