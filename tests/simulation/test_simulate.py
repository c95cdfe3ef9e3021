"""What holds for every simulation, and the errors of those that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ForewordError, ParameterError
from foreword.scheduling import FirstComeFirstServed, LinePolicy, make_router
from foreword.simulation import (
    SimulationResult,
    Trace,
    TraceRequest,
    WorkerConfig,
    simulate,
)
from foreword.simulation import _simulate as module
from foreword.simulation._worker import Worker
from tests.simulation.support import MIXED, SECOND, ask, trace


@st.composite
def traces(draw: Callable[[Any], Any], tenants: int = 3) -> Trace:
    """Requests that share prefixes, some of which come while others run."""
    unit = draw(st.sampled_from([1, 3, 8]))
    texts = [(1,), (1, 2), (1, 2, 3), (1, 4), (5, 6, 7), (8,), (1, 2, 3, 9, 10)]
    requests = []
    for _ in range(draw(st.integers(1, 12))):
        path = draw(st.sampled_from(texts))
        tokens = len(path) * unit  # equal ids are equal text, so all blocks are full
        arrival = draw(st.sampled_from([0.0, 0.0, 0.4, 1.7, 2.0, 9.0, 30.0]))
        who = str(draw(st.integers(1, tenants)))
        requests.append(TraceRequest(arrival, path, tokens, draw(st.integers(1, 25)), who))
    return Trace("drawn", unit, tuple(requests))


@st.composite
def configs(draw: Callable[[Any], Any], unit: int) -> WorkerConfig:
    blocks = draw(st.sampled_from([30, 36, 60, 500]))  # the longest needs 5 + 24 at unit 1
    step = draw(st.sampled_from([3, 7, 64]))
    return WorkerConfig(blocks * unit, draw(st.integers(1, 3)), step, draw(st.booleans()))


def run(asked: Trace, config: WorkerConfig, **more: Any) -> SimulationResult:
    return simulate(asked, cost=MIXED, worker=config, **more)


policies = st.sampled_from(["fcfs", "lpm", "vtc", "dlpm:quantum=20", "dlpm:quantum=5"])


@settings(deadline=None, max_examples=120)
@given(st.data(), traces(), policies, st.sampled_from([None, "d2lpm:quantum=9", "round-robin"]))
def test_a_jump_is_its_steps(
    data: st.DataObject, asked: Trace, policy: str, router: str | None
) -> None:
    config = data.draw(configs(asked.unit))
    more = {"policy": policy, "router": router, "workers": 2 if router else 1}
    jumps = run(asked, config, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_uniform_steps", lambda self: 1)
        steps = run(asked, config, **more)
    assert jumps.steps == steps.steps
    for one, other in zip(jumps.records, steps.records, strict=True):
        assert one[4:] == other[4:]
        assert one[:4] == pytest.approx(other[:4], rel=1e-9)
    assert jumps.service == steps.service
    if router:
        return  # two workers may end a step at the same instant, and either may come first
    assert jumps.service_gap == pytest.approx(steps.service_gap)
    assert jumps.windows == steps.windows
    assert jumps.jain == pytest.approx(steps.jain)


@settings(deadline=None, max_examples=150)
@given(st.data(), traces(), policies)
def test_what_holds_always(data: st.DataObject, asked: Trace, policy: str) -> None:
    config = data.draw(configs(asked.unit))
    workers: list[Worker] = []

    class Watched(Worker):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            workers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Worker", Watched)
        result = run(asked, config, policy=policy)
    workers[0].tree.check()
    assert result.finished == len(asked)
    assert [record.output for record in result.records] == [r.output for r in asked.requests]
    for record, request in zip(result.records, asked.requests, strict=True):
        assert record.admitted is not None
        assert record.first_token is not None
        assert record.finished is not None
        assert request.arrival <= record.admitted < record.first_token <= record.finished
    computed = result.computed_tokens
    assert computed == sum(record.computed for record in result.records)
    assert computed >= asked.distinct_tokens
    assert result.hit_rate <= result.ideal_hit_rate + 1e-12
    assert result.busy_seconds <= result.makespan * (1 + 1e-9)
    assert result.optimum_seconds <= result.busy_seconds * (1 + 1e-9)
    assert sum(result.service.values()) == pytest.approx(
        computed + result.recomputed_tokens + 2 * result.generated_tokens
    )
    total = [sum(window[tenant] for window in result.windows) for tenant in asked.tenants]
    assert total == pytest.approx(list(result.service.values()))


@settings(deadline=None, max_examples=40)
@given(traces(), policies)
def test_with_room_for_all_each_token_is_computed_once(asked: Trace, policy: str) -> None:
    result = run(asked, WorkerConfig(10_000, seats=4, step_tokens=16), policy=policy)
    assert result.computed_tokens == asked.distinct_tokens
    assert (result.preemptions, result.recomputed_tokens) == (0, 0)


@settings(deadline=None, max_examples=40)
@given(traces(), st.integers(2, 4), st.sampled_from(["d2lpm", "power-of-two", "prefix-affinity"]))
def test_workers_lose_and_double_nothing(asked: Trace, workers: int, name: str) -> None:
    router = make_router(name)
    config = WorkerConfig(40 * asked.unit, seats=2, step_tokens=8)
    result = run(asked, config, workers=workers, router=router, report_delay=0.3)
    assert result.finished == len(asked)
    assert result.generated_tokens == asked.output_tokens
    assert {record.worker for record in result.records} <= set(range(workers))
    assert [router.queue(worker) for worker in range(workers)] == [0] * workers  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=30)
@given(st.data(), traces(), st.floats(0.1, 40))
def test_what_was_before_the_end_is_the_same(data: st.DataObject, asked: Trace, end: float) -> None:
    config = data.draw(configs(asked.unit))
    whole, cut = run(asked, config), run(asked, config, until=end)
    assert cut.makespan <= end
    for record, early in zip(whole.records, cut.records, strict=False):
        for one, other in zip(record[:4], early[:4], strict=True):
            assert other is None or one == pytest.approx(other)
            assert other is not None or one is None or one >= end * (1 - 1e-9)


def test_the_same_twice() -> None:
    asked = trace(*(ask(0.1 * i, (i % 3, 3 + i), 2, 1 + i % 5, str(i % 2)) for i in range(30)))
    config = WorkerConfig(20, seats=3, step_tokens=5)
    results = [
        simulate(asked, cost=MIXED, worker=config, workers=3, router="power-of-two", seed=seed)
        for seed in (1, 1, 2)
    ]
    first, again, other = ([record.worker for record in result.records] for result in results)
    assert first == again != other
    assert results[0].records == results[1].records


def test_the_gap_is_that_of_all_intervals() -> None:
    """Two tenants in line from the start; LPM serves the one with the longer prefixes first."""
    flood = [ask(0.0, (1, 2, 3, 10 + i), 4, 2, "flood") for i in range(20)]
    quiet = [ask(0.0, (100 + i, 200 + i), 2, 2, "quiet") for i in range(20)]
    asked = trace(*flood, *quiet)
    config = WorkerConfig(60, seats=2, step_tokens=8)
    policies = ("lpm", "dlpm:quantum=4")
    gaps = {name: run(asked, config, policy=name).service_gap for name in policies}
    # LPM serves all 20 of the flood first: 3 shared tokens, then 1 more and 2 written ones each.
    # The last one's admission ends the interval and is not in it, nor is what it writes, nor
    # perhaps what the one before it writes.
    assert 3 + 19 * 1 + 17 * 4 <= gaps["lpm"] <= 3 + 19 * 1 + 19 * 4
    assert gaps["dlpm:quantum=4"] < gaps["lpm"] / 4


def test_a_policy_made_by_hand_and_what_it_is_told() -> None:
    told: list[tuple[str, Any]] = []

    class Ears(FirstComeFirstServed):
        name = "ears"

        def produced(self, counts: Any) -> None:
            told.append(("produced", dict(counts)))

        def left(self, id: int, how: Any, uncomputed: int = 0) -> None:
            told.append((how, id))

    asked = trace(ask(0, (1,), 1, 5), ask(0, (2,), 1, 2, max_output=9))
    result = simulate(asked, policy=Ears, cost=SECOND, worker=WorkerConfig(100, step_tokens=500))
    assert result.policy == "ears"
    assert told == [
        ("produced", {0: 2, 1: 2}),
        ("finished", 1),
        ("produced", {0: 3}),
        ("finished", 0),
    ]


def test_what_policies_are_told_of_lengths() -> None:
    lengths: list[int] = []

    class Ears(FirstComeFirstServed):
        def add(self, candidate: Any) -> None:
            lengths.append(candidate.max_output)
            super().add(candidate)

    asked = trace(ask(0, (1,), 1, 5), ask(0, (2,), 1, 2, max_output=9))
    simulate(asked, policy=Ears, cost=SECOND, worker=WorkerConfig(100, step_tokens=500))
    assert lengths == [5, 9]
    # Put back in line with 2 tokens written, as `test_preemption` works out: 2 of 4 may follow.
    lengths.clear()
    crowd = trace(ask(0, (0, 1), 2, 4), ask(0, (2, 3), 2, 4))
    simulate(crowd, policy=Ears, cost=SECOND, worker=WorkerConfig(6, seats=2, step_tokens=8))
    assert lengths == [4, 4, 2]


def test_a_policy_that_admits_nobody_does_not_stop_the_desk() -> None:
    class Shut(LinePolicy):
        name = "shut"

        def _enter(self, candidate: Any) -> None: ...
        def _leave(self, candidate: Any) -> None: ...
        def _serve(self, door: Any) -> None: ...

    asked = trace(ask(0, (1,), 1, 1), ask(0, (2,), 1, 1))
    assert run(asked, WorkerConfig(10, 2, 2), policy=Shut).finished == 2


def test_progress() -> None:
    seen: list[tuple[int, int, float]] = []
    asked = trace(*(ask(float(i), (i,), 1, 1) for i in range(400)))
    config = WorkerConfig(10, seats=1)
    simulate(asked, cost=SECOND, worker=config, on_progress=lambda *where: seen.append(where))
    assert seen
    assert all(0 < done < total == 400 and now > 0 for done, total, now in seen)


def test_results_as_json() -> None:
    result = run(trace(ask(0, (1,), 1, 3, "a"), ask(0, (2,), 1, 3, "b")), WorkerConfig(10, 2))
    short = result.to_dict()
    assert "records" not in short
    assert short["ttft"]["p50"] == result.ttft.p50
    assert short["tenants"]["a"]["latency"]["p99"] == result.tenants["a"].latency.p99
    assert result.to_dict(records=True)["records"][1]["tenant"] == "b"


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"workers": 0}, "0 workers"),
        ({"until": 0.0}, "until is 0.0"),
        ({"until": float("nan")}, "until is nan"),
        ({"window": 0.0}, "window is 0.0"),
        ({"window": inf}, "window is inf"),
        ({"report_delay": -1.0}, "report_delay is -1.0"),
        ({"policy": "best"}, "no policy 'best'"),
        ({"router": "best"}, "no router 'best'"),
    ],
)
def test_impossible_settings(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        run(trace(ask(0, (1,), 1, 1)), WorkerConfig(10, 2), **settings_)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"cache_tokens": 0}, "cache_tokens is 0"),
        ({"cache_tokens": 9, "seats": 0}, "seats is 0"),
        ({"cache_tokens": 9, "step_tokens": 0}, "step_tokens is 0"),
        ({"cache_tokens": 9, "seats": 5, "step_tokens": 4}, "5 seats and 4 tokens in a step"),
    ],
)
def test_impossible_workers(settings_: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        WorkerConfig(**settings_)


def test_a_request_that_fits_no_cache() -> None:
    asked = trace(ask(0, (1,), 4, 1), ask(0, (2, 3), 6, 8), ask(0, (4,), 4, 30), unit=4)
    message = (
        "request 1 .* 6 tokens and an answer of 8, 4 blocks of 4, .* holds 3: .* has 36 tokens"
    )
    with pytest.raises(ForewordError, match=message):
        run(asked, WorkerConfig(15, 2))
    assert run(asked, WorkerConfig(36, 2)).finished == 3


def test_all_pairs_of_tenants_are_compared() -> None:
    asked = trace(*(ask(0.0, (i,), 1, 4, str(i % 4)) for i in range(40)))
    result = run(asked, WorkerConfig(100, seats=3, step_tokens=8))
    pairs = list(combinations(result.service.values(), 2))
    assert all(one == other for one, other in pairs)
    assert result.service_gap > 0
    assert result.jain == pytest.approx(1, abs=0.02)
